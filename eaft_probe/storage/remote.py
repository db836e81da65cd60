"""Stores: what fsspec reaches under a URL such as s3://bucket/scan. A put is one step for readers.

A put into an object store is one by itself, and the store refuses the second of two that want a
new name (`create`). Where there are real folders, and so a real move, a file is put aside first.
What fails for a moment is asked again; what fails for good is one line.
"""

import hashlib
import os
import posixpath
import re
import secrets
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eaft_probe.errors import BadInput, ProbeError, ScanError, one_line
from eaft_probe.storage.atomic import cache_folder, written_aside

TRIES, PAUSE = 3, 1.0  # how often a store is asked, and seconds between, which double
PROBE = "tokens/.writable"
AT_ONCE = 8  # files on their way from an object store
LOCAL = re.compile(r"(?:file|local):(?://)?(?=/)")
MD5 = re.compile(r"[0-9a-f]{32}|[A-Za-z0-9+/]{22}==")  # S3 in digits, Google in base64
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PATHS = ("model", "adapter", "reference", "chat_template")  # settings that may be paths
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # by scheme

T = TypeVar("T")
Infos = Mapping[str, Mapping[str, Any]]  # name → what the store says of it


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


def without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Resolved settings with names in place of paths; see `name_of`."""
    return {k: name_of(v) if v and k in PATHS else v for k, v in settings.items()}


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

        def look(fs: Any, root: str) -> Infos:
            return {i["name"]: i for i in fs.ls(root, detail=True) if i["type"] == "file"}

        return self._listed(look)

    def has(self, name: str) -> bool:
        return self._ask(lambda fs, root: _exists(fs, f"{root}/{name}"))

    def _listed(self, look: Callable[[Any, str], Infos]) -> Infos:
        def ask(fs: Any, root: str) -> Infos:
            try:
                found = look(fs, root)
            except FileNotFoundError:
                return {}
            return {n.removeprefix(root).lstrip("/"): i for n, i in found.items()}

        return self._ask(ask)

    # --- to read ---

    def get(self, name: str, most: int) -> bytes | None:
        """A small file, of up to `most` bytes; None where there is none."""

        def ask(fs: Any, root: str) -> bytes | None:
            try:
                size = fs.info(f"{root}/{name}")["size"]
                if size is not None and size > most:
                    raise ScanError(
                        f"{self.shown}/{name} is damaged: {size:,} bytes, there can be {most:,}"
                    )
                return fs.cat_file(f"{root}/{name}")  # type: ignore[no-any-return]
            except FileNotFoundError:
                return None

        return self._ask(ask)

    def fetch(
        self,
        wanted: Mapping[str, Path],
        sha256: Mapping[str, str] | None = None,
    ) -> None:
        """Files into their places here, each whole or not at all; see `written_aside`.

        Raises `ScanError` where one is not there, or has another hash than is given.
        """

        def one(name: str) -> None:
            with written_here(wanted[name]) as aside:
                self._fetch(name, aside)
                if sha256 is not None and _sha256(aside.read_bytes()) != sha256[name]:
                    raise ScanError(
                        f"{self.shown}/{name} is not the part that the manifest "
                        f"describes: another sha256"
                    )

        self._each(one, wanted)

    def _fetch(self, name: str, path: Path) -> None:
        def ask(fs: Any, root: str) -> None:
            try:
                fs.get_file(f"{root}/{name}", str(path))
            except FileNotFoundError as error:
                raise ScanError(f"{self.shown}/{name} is missing") from error

        self._ask(ask)

    # --- to write ---

    def create(self, name: str, data: bytes) -> bytes | None:
        """Puts a file where there is none. None, or what is there already."""

        def ask(fs: Any, root: str) -> bytes | None:
            path = f"{root}/{name}"
            try:
                if _moves(fs):
                    _put_aside(fs, path, data, replace=False)
                else:
                    fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return _there(fs, path)
            return None

        return self._ask(ask)

    def put(self, name: str, data: bytes) -> None:
        """Puts a file, whatever is there."""

        def ask(fs: Any, root: str) -> None:
            if _moves(fs):
                _put_aside(fs, f"{root}/{name}", data, replace=True)
            else:
                fs.pipe_file(f"{root}/{name}", data)

        self._ask(ask)

    def require_writable(self) -> None:
        """Raises as `put` does: before a large model is loaded rather than after."""
        self.put(PROBE, b"")
        with suppress(BadInput):  # some may put and not remove
            self.remove([PROBE])

    def remove(self, names: Iterable[str]) -> None:
        """What is not there is no error."""

        def one(name: str) -> None:
            self._ask(lambda fs, root: _remove(fs, f"{root}/{name}"))

        self._each(one, names)

    # --- how it is asked ---

    def _each(self, do: Callable[[str], None], names: Iterable[str]) -> None:
        """Several at once where the file system is made for it."""
        names = list(names)
        at_once = AT_ONCE if names and self._fs()[0].async_impl else 1
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(do, names))

    def _fs(self) -> tuple[Any, str]:
        """fsspec's file system, and the path in it."""
        from fsspec.core import url_to_fs  # here: not every command needs it

        try:
            fs, root = url_to_fs(self.url)
        except ImportError as error:
            extra = EXTRAS.get(self.url.split(":")[0].lower())
            how = f"pip install 'eaft-probe[{extra}]'" if extra else one_line(error)
            raise BadInput(f"{self.shown} needs a package that is not here: {how}") from error
        except Exception as error:  # each file system has its own
            raise BadInput(f"{self.shown} cannot be opened: {one_line(error)}") from error
        return fs, root.rstrip("/")

    def _ask(self, ask: Callable[[Any, str], T]) -> T:
        """What `ask` gives for the file system and the path in it."""
        fs, root = self._fs()
        for again in range(TRIES):
            try:
                fs.invalidate_cache()  # of listings: others write there, too
                return ask(fs, root)
            except ProbeError:
                raise
            except Exception as error:  # each file system has its own
                if again + 1 == TRIES or _is_final(error):
                    raise self._said(error) from error
                time.sleep(PAUSE * 2**again)
        raise AssertionError

    def _said(self, error: Exception) -> ProbeError:
        if _is_refusal(error):
            return BadInput(f"{self.shown} does not let us in: {one_line(error)}")
        if isinstance(error, FileNotFoundError):
            return BadInput(f"{self.shown} is in no place that exists: {one_line(error)}")
        return ProbeError(
            f"{self.shown} does not answer: {one_line(error)}; what is finished "
            f"stays, the same command goes on from there"
        )


@contextmanager
def written_here(path: Path) -> Iterator[Path]:
    """`written_aside`, into a folder that need not be there. Raises `ProbeError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            yield aside
    except OSError as error:
        raise ProbeError(f"cannot write {path}: {error.strerror or one_line(error)}") from error


def same(info: Mapping[str, Any], path: Path) -> bool | None:
    """Whether a store says that it has the bytes of a file here; None where it does not tell.

    Most object stores name the md5 of what was put at once.
    """
    if not path.is_file() or info.get("size") != path.stat().st_size:
        return False
    said = str(info.get("ETag") or info.get("md5Hash") or "").strip('"')
    if not MD5.fullmatch(said):
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return said in (digest.hexdigest(), b64encode(digest.digest()).decode())


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, PermissionError) or "Credential" in type(error).__name__


def _is_final(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) or _is_refusal(error)


def _moves(fs: Any) -> bool:
    """Whether files are written bit by bit there and moved in one step: nothing of its own for a
    put, and something for a move. (gcsfs has both; its put is one step, its move a copy.)"""
    from fsspec import AbstractFileSystem

    plain_put = getattr(fs.pipe_file, "__func__", None) is AbstractFileSystem.pipe_file
    return plain_put and type(fs).mv is not AbstractFileSystem.mv


def _there(fs: Any, path: str) -> bytes:
    try:
        return fs.cat_file(path)  # type: ignore[no-any-return]
    except FileNotFoundError as error:
        raise OSError(f"{path} has gone at this moment") from error  # so it is asked again


def _exists(fs: Any, path: str) -> bool:
    """fsspec's own `exists` says no where the store does not answer."""
    try:
        fs.info(path)
    except FileNotFoundError:
        return False
    return True


def _remove(fs: Any, path: str) -> None:
    with suppress(FileNotFoundError):
        fs.rm_file(path)


def _put_aside(fs: Any, path: str, data: bytes, replace: bool) -> None:
    folder, name = posixpath.split(path)
    aside = f"{folder}/.{name}.{secrets.token_hex(4)}.part"
    if not replace and _exists(fs, path):
        raise FileExistsError(path)
    fs.makedirs(folder, exist_ok=True)
    try:
        fs.pipe_file(aside, data)
        if replace and not _replaces(fs):
            _remove(fs, path)
        fs.mv(aside, path)
    except BaseException:
        _remove(fs, aside)
        raise


def _replaces(fs: Any) -> bool:
    """SFTP moves onto a file that is there as POSIX does; HDFS, FTP and SMB refuse to."""
    return "sftp" in fs.protocol or "ssh" in fs.protocol


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
