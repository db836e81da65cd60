"""A source of rows, and one of its rows, not parsed yet."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from eaft_probe.data.files.lines import parse_json
from eaft_probe.data.messages import checked
from eaft_probe.errors import ProbeError, RowError


class Record(NamedTuple):
    """One row of the data, not parsed yet."""

    row: int  # from 0, over all files
    file: str
    line: int | None  # from 1, where the file has lines
    value: Any  # bytes of one JSON line, the parsed row, or the `RowError` that reading it gave

    def parse(self) -> dict[str, Any]:
        """The row as a dictionary. Raises `RowError` where it is none."""
        value = parse_json(self.value) if isinstance(self.value, bytes) else self.value
        if isinstance(value, RowError):
            raise value
        return checked(value, dict, "the row")

    @property
    def size(self) -> int:
        """Bytes of a JSON line; for parsed rows the characters of their values."""
        if isinstance(self.value, bytes):
            return len(self.value)
        values = self.value.values() if isinstance(self.value, dict) else ()
        return sum(map(len, map(str, values)))


class Source(ABC):
    """A data set that can be read again and again in the same order.

    `on_disk`: the files that must not change while it is read.
    """

    def __init__(self, name: str, on_disk: Iterable[Path] = ()) -> None:
        self.name, self.on_disk = name, tuple(on_disk)
        self._stamps = {path: _stamp(path) for path in self.on_disk}  # before anything is read

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """The rows in their order."""

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 of the content."""

    def files(self) -> Mapping[str, str]:
        """File → its fingerprint alone, where there are files."""
        return {}

    def obeys(self, setting: str) -> bool:
        """Whether `split`, `config_name` or `data_revision` chooses what is read of it."""
        return False

    def notes(self) -> Sequence[str]:
        """What of the data is not read, a line each; everything else is."""
        return ()

    def require_unchanged(self) -> None:
        """Raises `ProbeError` where a file is no longer the one that was opened, as far as its
        size, time and inode tell."""
        for path, stamp in self._stamps.items():
            if _stamp(path) != stamp:
                raise ProbeError(
                    f"{path} changed while it was being read; put the old file back "
                    f"and rerun, or start again with --overwrite"
                )

    def reopened(self) -> "Source":
        """The same data, with nothing of it remembered."""
        return self


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def file_fingerprint(file: BufferedReader) -> str:
    """The fingerprint of data that are this file alone."""
    content = hashlib.file_digest(file, "sha256").digest()
    return hashlib.sha256(content).hexdigest()


def path_fingerprint(path: Path) -> str:
    """That of the file at a path."""
    with path.open("rb") as file:
        return file_fingerprint(file)
