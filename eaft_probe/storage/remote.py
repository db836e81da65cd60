"""Object stores: what fsspec reaches under a URL such as s3://bucket/scan. A put is one step.

The store refuses the second of two that create the same name. What fails for a moment is tried
again; what fails for good is one line.
"""

import hashlib
import os
import re
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from eaft_probe.errors import BadInput, ProbeError, ScanError, one_line
from eaft_probe.storage.atomic import cache_folder, require_size, written_aside

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

TRIES, PAUSE = 3, 1.0  # how often a store is asked, and seconds between, which double
PROBE = "tokens/.writable"
AT_ONCE = 8  # files on their way from an object store
LOCAL = re.compile(r"(?:file|local):(?://)?(?=/)")
MD5 = re.compile(r"[0-9a-f]{32}|[A-Za-z0-9+/]{22}==")  # S3 in digits, Google in base64
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Settings that may be paths.
PATHS = ("model", "adapter", "reference", "chat_template", "calibrate")
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # by scheme
# Schemes of file servers: they write a file bit by bit under its name, where others see half of it.
FILE_SERVERS = {"arrow_hdfs", "ftp", "hdfs", "sftp", "smb", "ssh", "webhdfs"}

T = TypeVar("T")
U = TypeVar("U")
Infos = Mapping[str, Mapping[str, object]]  # name → what the store says of it


def local(place: str | Path) -> Path:
    """A folder of this machine, which may be given as file:///folder."""
    return Path(LOCAL.sub("", str(place), count=1))


def name_of(place: str | Path) -> str:
    """What data, a model or a scan is called in what people pass on: the last part of a path on
    this machine. A hub id stays, and so does the URL of a store, without its password."""
    store = Store.of(str(place))
    if store:
        return store.shown
    path = local(place).expanduser()
    if HUB_ID.fullmatch(str(place)) and not path.exists():
        return str(place)
    return Path(os.path.abspath(path)).name or str(place)


def without_paths(settings: Mapping[str, object]) -> dict[str, object]:
    """Resolved settings with names in place of paths; see `name_of`."""
    return {k: name_of(str(v)) if v and k in PATHS else v for k, v in settings.items()}


@dataclass(frozen=True)
class Store:
    """The files below a URL. Its methods raise `BadInput` where the store does not let this user
    in, or there is none, and `ProbeError` where it does not answer."""

    url: str

    @classmethod
    def of(cls, place: str | Path) -> "Store | None":
        """None where `place` is a folder of this machine."""
        if isinstance(place, Path) or LOCAL.match(place) or not URL.match(place):
            return None
        return cls(place.rstrip("/"))

    @property
    def shown(self) -> str:
        """The URL without the password that it may have."""
        return re.sub(r"(//[^/@:]*):[^/@]*@", r"\1@", self.url)

    @property
    def cache(self) -> Path:
        """The folder of this machine for what comes from there or is on its way."""
        name = re.sub(r"[^\w.-]+", "-", self.shown)[-60:].strip("-.")
        return cache_folder() / "stores" / f"{name}-{_sha256(self.url.encode())[:12]}"

    @property
    def of_this_process(self) -> bool:
        """Whether another process finds something else there."""
        return self.url.startswith("memory:")

    # --- to look ---

    def names(self) -> Infos:
        """Every file below the URL."""
        return self._listed(lambda fs, root: fs.find(root, detail=True))

    def top(self) -> Infos:
        """The files directly below the URL."""
        infos = self._listed(lambda fs, root: {i["name"]: i for i in fs.ls(root, detail=True)})
        return {name: info for name, info in infos.items() if info["type"] == "file"}

    def has(self, name: str) -> bool:
        # fsspec's own `exists` says no where the store does not answer.
        return self._find(lambda fs, root: bool(fs.info(f"{root}/{name}")), False)

    def _listed(self, look: "Callable[[AbstractFileSystem, str], Infos]") -> Infos:
        def ask(fs: "AbstractFileSystem", root: str) -> Infos:
            return {n.removeprefix(root).lstrip("/"): i for n, i in look(fs, root).items()}

        return self._find(ask, {})

    # --- to read ---

    def get(self, name: str, most: int) -> bytes | None:
        """A small file, of up to `most` bytes; None where there is none."""

        def ask(fs: "AbstractFileSystem", root: str) -> bytes:
            require_size(f"{self.shown}/{name}", fs.info(f"{root}/{name}")["size"], most)
            return bytes(fs.cat_file(f"{root}/{name}"))

        return self._find(ask, None)

    def fetch(
        self,
        wanted: Mapping[str, Path],
        sha256: Mapping[str, str] | None = None,
    ) -> None:
        """Files into their places here, each whole or not at all; see `written_aside`.

        Raises `ScanError` where one is not there, or has another hash than is given.
        """

        def fetch_one(name: str) -> None:
            with written_here(wanted[name]) as aside:
                self._fetch(name, aside)
                if sha256 is not None and _sha256(aside.read_bytes()) != sha256[name]:
                    raise ScanError(
                        f"{self.shown}/{name} is not the part that the manifest "
                        f"describes: its sha256 differs"
                    )

        self._each(fetch_one, wanted)

    def _fetch(self, name: str, path: Path) -> None:
        def ask(fs: "AbstractFileSystem", root: str) -> bool:
            fs.get_file(f"{root}/{name}", str(path))
            return True

        if not self._find(ask, False):
            raise ScanError(f"{self.shown}/{name} is missing")

    # --- to write ---

    def create(self, name: str, data: bytes) -> bytes | None:
        """Puts a file where there is none. None, or what is there already."""

        def ask(fs: "AbstractFileSystem", root: str) -> bytes | None:
            try:
                fs.pipe_file(f"{root}/{name}", data, mode="create")
            except FileExistsError:
                return _existing(fs, f"{root}/{name}")
            return None

        return self._ask(ask)

    def put(self, name: str, data: bytes) -> None:
        """Puts a file, whatever is there."""
        self._ask(lambda fs, root: fs.pipe_file(f"{root}/{name}", data))

    def require_writable(self) -> None:
        """Raises as `put` does: before a large model is loaded rather than after."""
        self.put(PROBE, b"")
        with suppress(BadInput):  # some may put and not remove
            self.remove([PROBE])

    def remove(self, names: Iterable[str]) -> None:
        """What is not there is no error."""
        self._each(
            lambda name: self._find(lambda fs, root: fs.rm_file(f"{root}/{name}"), None), names
        )

    # --- how it is asked ---

    def _each(self, do: Callable[[str], None], names: Iterable[str]) -> None:
        """Several at once where the file system is made for it."""
        names = list(names)
        at_once = AT_ONCE if names and self._fs()[0].async_impl else 1
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(do, names))

    def _fs(self) -> "tuple[AbstractFileSystem, str]":
        """fsspec's file system, and the path in it."""
        from fsspec.core import url_to_fs  # here: not every command needs it

        scheme = self.url.split(":")[0].lower()
        if scheme in FILE_SERVERS:
            raise BadInput(
                f"{self.shown} is on a file server, where a file cannot be written in one step; "
                f"give a folder (also a mounted one), or an object store such as s3://, gs:// or "
                f"memory://"
            )
        try:
            fs, root = url_to_fs(self.url)
        except ImportError as error:
            extra = EXTRAS.get(scheme)
            how = f"pip install 'eaft-probe[{extra}]'" if extra else one_line(error)
            raise BadInput(f"{self.shown} needs a package that is not installed: {how}") from error
        except Exception as error:  # each file system has its own
            raise BadInput(f"{self.shown} cannot be opened: {one_line(error)}") from error
        return fs, root.rstrip("/")

    def _ask(self, ask: "Callable[[AbstractFileSystem, str], T]") -> T:
        """What `ask` gives for the file system and the path in it."""
        fs, root = self._fs()
        for tries_left in reversed(range(TRIES)):
            try:
                fs.invalidate_cache()  # of listings: others write there, too
                return ask(fs, root)
            except ProbeError:
                raise
            except Exception as error:  # each file system has its own
                refusal = self._refusal(error)
                if refusal or not tries_left:
                    raise refusal or ProbeError(
                        f"{self.shown} does not answer: {one_line(error)}; finished parts are "
                        f"kept, run the same command again to continue"
                    ) from error
                time.sleep(PAUSE * 2 ** (TRIES - 1 - tries_left))
        raise AssertionError

    def _find(self, ask: "Callable[[AbstractFileSystem, str], T]", missing: U) -> T | U:
        """The same; `missing` where there is no such file."""

        def ask_or_miss(fs: "AbstractFileSystem", root: str) -> T | U:
            try:
                return ask(fs, root)
            except FileNotFoundError:
                return missing

        return self._ask(ask_or_miss)

    def _refusal(self, error: Exception) -> BadInput | None:
        """What asking again would not change."""
        if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
            return BadInput(f"{self.shown} refuses access: {one_line(error)}")
        if isinstance(error, FileNotFoundError):
            return BadInput(f"{self.shown} does not exist: {one_line(error)}")
        return None


@contextmanager
def written_here(path: Path) -> Iterator[Path]:
    """`written_aside`, into a folder that need not be there. Raises `ProbeError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            yield aside
    except OSError as error:
        raise ProbeError(f"cannot write {path}: {error.strerror or one_line(error)}") from error


def same(info: Mapping[str, object], path: Path) -> bool | None:
    """Whether a store says that it has the bytes of a local file; None where it does not say.

    Most object stores name the md5 of what was put at once.
    """
    if not path.is_file() or info.get("size") != path.stat().st_size:
        return False
    md5 = str(info.get("ETag") or info.get("md5Hash") or "").strip('"')
    if not MD5.fullmatch(md5):
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return md5 in (digest.hexdigest(), b64encode(digest.digest()).decode())


def _existing(fs: "AbstractFileSystem", path: str) -> bytes:
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError as error:
        raise OSError(f"{path} has gone at this moment") from error  # so it is asked again


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
