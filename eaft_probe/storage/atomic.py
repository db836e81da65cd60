"""How every file is written, aside and then renamed when it is whole, and how files are read."""

import errno
import fcntl
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eaft_probe.errors import BadInput, ScanError, one_line

DEEPEST = 16  # levels of nesting outside of the parts; a scan's own have 3

ASIDE = re.compile(r"\..*[0-9a-f]{8}\.part")  # the names of files aside
STALE = 3600  # seconds after which a file aside has no writer, where locks do not tell

MARKED = 65_536  # bytes at either end of a file that are searched for a mark


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to. It takes the place of `path` in one step, or goes.

    A reader sees the old file or the whole new one, and of two writers the last. Raises `OSError`.
    """
    with aside_of(path) as aside:
        yield aside
        os.replace(aside, path)


@contextmanager
def aside_of(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which is gone at the end. Nobody else knows its name: a
    link that stood there would lead what is written out of the folder. What writers that were
    killed left in the folder goes before."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    if len(os.fsencode(aside.name)) > 255:  # the system would name the file aside, not this one
        aside = path.with_name(f".{secrets.token_hex(16)}.part")
    try:
        _sweep(path.parent.absolute())
        with _held(aside):
            yield aside
    finally:
        with suppress(OSError):  # a name too long to be there
            aside.unlink(missing_ok=True)


@cache  # once a process: a scan writes thousands of parts into the same folder
def _sweep(folder: Path) -> None:
    for file in folder.glob(".*.part"):
        with suppress(OSError):
            if ASIDE.fullmatch(file.name) and stat.S_ISREG(file.lstat().st_mode):
                _remove_if_abandoned(file)


@contextmanager
def _held(aside: Path) -> Iterator[None]:
    """A new file, locked as long as its writer lives."""
    file = _locked_file(aside)
    while not os.fstat(file).st_nlink:  # swept between its opening and its lock
        os.close(file)
        file = _locked_file(aside)
    try:
        yield
    finally:
        os.close(file)


def _locked_file(aside: Path) -> int:
    file = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _remove_if_abandoned(aside: Path) -> None:
    """Under the lock that its writer would hold, so that a writer who gets it next sees it gone."""
    file = os.open(aside, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        aside.unlink()
    except BlockingIOError:
        pass
    except OSError:
        if time.time() - aside.lstat().st_mtime > STALE:
            aside.unlink()
    finally:
        os.close(file)


@contextmanager
def locked(
    path: Path, what: object, note: Callable[[str], object], shared: bool = False
) -> Iterator[None]:
    """While this runs, no other process of a machine is at work on `what`; the system forgets the
    lock of a process that is killed. Where a file system has none, goes on and says so.

    Raises `OSError`, and where another one is at work `BadInput`, unless `what` may be `shared`.
    """
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        if not shared:
            raise BadInput(
                f"{what} is in use by another run; wait for it, or choose another --out"
            ) from None
        note(f"another run is at work on {what}: waiting for it is faster than running both")
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        note(f"the file system of {what} has no locks; do not start a second run there")
    try:
        yield
    finally:
        if lock.is_locked:  # a file that another one has opened meanwhile is seen to be gone
            path.unlink(missing_ok=True)
            lock.release()


def require_writable(folder: Path) -> None:
    """Before the long work; the folder need not be there. Raises `BadInput`."""
    existing = next(f for f in (folder, *folder.absolute().parents) if f.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BadInput(
            f"cannot write to {folder}: no permission in {existing}; choose another --out"
        )


def require_replaceable(path: Path, what: str, is_ours: Callable[[Path], bool]) -> None:
    """Raises `BadInput` where `path` is anything but a new name, an empty file or an earlier
    output of the same kind, which `is_ours` tells."""
    try:
        kind = path.stat()
    except (OSError, ValueError):
        return  # not there, or whoever writes says why it cannot be
    if not stat.S_ISREG(kind.st_mode):
        raise BadInput(f"{path} is not a regular file; choose another name")
    if kind.st_size and not is_ours(path):
        raise BadInput(
            f"{path} exists and is not an earlier {what}; choose another name or give --overwrite"
        )


def has_mark(path: Path, mark: bytes) -> bool:
    """Whether a file has the mark of the program that wrote it, near its beginning or its end."""
    with path.open("rb") as file:
        first = file.read(MARKED)
        file.seek(-min(MARKED, path.stat().st_size), os.SEEK_END)
        return mark in first or mark in file.read()


def file_inside(folder: Path, name: str) -> Path:
    """A file of a folder that somebody else may have made, to be read.

    Raises `ScanError` where it is not there, is not a regular file (opening a pipe would wait for
    ever) or is a link that leads out of the folder.
    """
    path = folder / name
    try:
        kind = path.lstat().st_mode
        if stat.S_ISLNK(kind):
            kind = path.stat().st_mode
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ScanError(f"{path} is a link that leads out of {folder}; copy the file")
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        raise ScanError(f"{path} cannot be read: {one_line(error)}") from error
    if not stat.S_ISREG(kind):
        raise ScanError(f"{path} is not a regular file")
    return path


def require_utf8(name: str | Path) -> None:
    """Raises `BadInput` for a name that no text file can hold: manifests and reports name files."""
    try:
        str(name).encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"the name {str(name)[:200]!r} is not UTF-8; rename the file") from error


def special_file_in(folder: Path) -> Path | None:
    """A pipe or a device in a folder: opening one may wait for ever, reading one may never end."""
    return next(
        (p for p in folder.iterdir() if p.exists() and not (p.is_file() or p.is_dir())), None
    )


def cache_folder() -> Path:
    """EAFT_PROBE_CACHE, or eaft-probe below the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EAFT_PROBE_CACHE") or Path(root) / "eaft-probe")


def write_json(path: Path, value: object) -> None:
    with written_aside(path) as aside:
        aside.write_bytes(json_bytes(value))


def json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def read_json(path: Path, most: int) -> dict[str, Any]:
    """An object of a JSON file that anybody may have written. Raises `ScanError`."""
    try:
        require_size(path, path.stat().st_size, most)
        return parsed_json(path.read_bytes(), path)
    except OSError as error:
        raise ScanError(f"{path} is damaged: {one_line(error)}") from error


def require_size(name: str | Path, size: int | None, most: int) -> None:
    """Before a file is read that should be small. Raises `ScanError`."""
    if size is not None and size > most:
        raise ScanError(f"{name} is damaged: it has {size:,} bytes, at most {most:,} are expected")


def parsed_json(data: bytes, name: str | Path) -> dict[str, Any]:
    """The object that the file of that name holds. Raises `ScanError`."""
    try:
        value = json.loads(data, parse_constant=_no_number)
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not an object")
        if _deeper({k: v for k, v in value.items() if k != "parts"}, DEEPEST):
            raise ValueError(f"nested more than {DEEPEST} levels deep")
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair prints nowhere
    except (ValueError, RecursionError) as error:
        raise ScanError(f"{name} is damaged: {one_line(error)}") from error
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _deeper(value: object, levels: int) -> bool:
    """Whether there is anything more than so many levels down."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(v, levels - 1) for v in inner)
