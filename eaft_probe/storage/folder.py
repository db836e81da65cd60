"""A folder of this machine or of a file server that several runs may write at once.

A file is created once, whole and in one step. A second run that creates it with the same bytes
does no harm, and other bytes are seen. `Store` does the same for what lies under a URL.
"""

import errno
import filecmp
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Protocol

from eaft_probe.errors import BadInput, ProbeError, ScanError, one_line
from eaft_probe.storage.atomic import aside_of, require_size, written_aside

# What says that a file system has no hard links: some of FUSE's and SMB's.
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
CLAIM = 10  # seconds after which a claim's maker has died; it is filled by one rename


class Destination(Protocol):
    """What a scan is written into: a `Folder` or a `Store`."""

    @property
    def shown(self) -> str:
        """Its name, for people."""

    def names(self) -> Iterable[str]:
        """Every file, by its path within."""

    def has(self, name: str) -> bool: ...

    def get(self, name: str, most: int) -> bytes | None:
        """A small file, of up to `most` bytes; None where there is none."""

    def create(self, name: str, data: bytes) -> bytes | None:
        """Puts a file where there is none. None, or what is there already."""

    def put(self, name: str, data: bytes) -> None:
        """Puts a file, whatever is there."""

    def remove(self, names: Iterable[str]) -> None:
        """What is not there is no error."""


@dataclass(frozen=True)
class Folder:
    """Its methods raise `OSError`; see `writing_into`."""

    path: Path

    @property
    def shown(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        files = [
            Path(folder, name)
            for folder, folders, names in os.walk(self.path)
            for name in [*names, *(f for f in folders if Path(folder, f).is_symlink())]
        ]
        return [file.relative_to(self.path).as_posix() for file in files]

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def get(self, name: str, most: int) -> bytes | None:
        path = self.path / name
        try:
            if path.exists() and not path.is_file():  # reading a pipe would wait for ever
                raise ScanError(f"{path} is not a regular file")
            require_size(path, path.stat().st_size, most)
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def create(self, name: str, data: bytes) -> bytes | None:
        path = self._inside(name)
        with aside_of(path) as aside:
            aside.write_bytes(data)
            return None if _linked(aside, path) else path.read_bytes()

    def put(self, name: str, data: bytes) -> None:
        with written_aside(self._inside(name)) as aside:
            aside.write_bytes(data)

    def remove(self, names: Iterable[str]) -> None:
        """Folders that are empty then go as well."""
        for path in (self.path / name for name in names):
            path.unlink(missing_ok=True)
            if path.parent != self.path:
                with suppress(OSError):  # something is left
                    path.parent.rmdir()

    def _inside(self, name: str) -> Path:
        """A link in a folder that somebody else may have made would lead what is written away."""
        path = self.path / name
        for parent in [path.parent, path.parent.parent]:
            if parent.is_relative_to(self.path) and parent != self.path and parent.is_symlink():
                raise ScanError(f"{parent} is a link; a scan writes only into its own folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Makes the folder, which goes again where nothing came into it.

    Raises `BadInput` where it cannot be written to, before a large model is loaded rather than
    after, and `ProbeError` where a write fails later.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error.strerror or one_line(error)}") from error
    try:
        yield
    except OSError as error:
        why = error.strerror or one_line(error)
        raise ProbeError(
            f"cannot write to {folder}: {why}; finished parts are kept, run the same command "
            f"again to continue"
        ) from error
    finally:
        with suppress(OSError):
            folder.rmdir()


def _linked(aside: Path, path: Path) -> bool:
    """Whether `path` now has these bytes; False where other ones were there."""
    try:
        os.link(aside, path)
    except OSError as error:
        if aside.stat().st_nlink == 2:
            return True  # NFS asked twice: the link was made, the first answer was lost
        if error.errno in NO_LINKS:
            return _claimed(aside, path)
        if error.errno != errno.EEXIST:
            raise
        return filecmp.cmp(aside, path, shallow=False)
    return True


def _claimed(aside: Path, path: Path) -> bool:
    """The same without hard links: an empty file is a claim, until its maker fills it or dies."""
    try:
        path.open("xb").close()
    except FileExistsError:
        while not path.stat().st_size:
            aside.touch()  # both times are of the file server's clock
            if aside.stat().st_mtime - path.stat().st_mtime > CLAIM:
                break
            time.sleep(0.05)
        else:
            return filecmp.cmp(aside, path, shallow=False)
    shutil.move(aside, path)
    return True
