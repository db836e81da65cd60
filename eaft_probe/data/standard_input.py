"""Rows from standard input, which is read once and kept in a file without a name."""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from eaft_probe.data.readers import (
    read_stream,
)
from eaft_probe.data.record import Record, file_fingerprint


@dataclass(frozen=True)
class Spooled:
    """JSON lines of a stream, which can be read only once, where planning and scoring read twice.

    The copy has no name: it goes with this process, however that ends.
    """

    name: str
    copy: IO[bytes]

    @classmethod
    def of(cls, name: str, stream: IO[bytes]) -> "Spooled":
        copy = tempfile.TemporaryFile()  # noqa: SIM115  open as long as this is read
        shutil.copyfileobj(stream, copy)
        copy.flush()
        return cls(name, copy)

    def records(self) -> Iterator[Record]:
        for row, (line, value) in enumerate(read_stream(self._opened(), ".jsonl")):
            yield Record(row, self.name, line, value)

    def fingerprint(self) -> str:
        return file_fingerprint(self._opened())

    def files(self) -> dict[str, str]:
        return {}

    def require_unchanged(self) -> None:
        """Nobody else can write to it."""

    def reopened(self) -> "Spooled":
        return self

    def _opened(self) -> io.BufferedReader:
        return io.BufferedReader(_Again(self.copy))


class _Again(io.RawIOBase):
    """An open file read from its start, at a place of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.at = file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self.file.fileno(), len(buffer), self.at)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)
