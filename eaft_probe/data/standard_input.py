"""Rows from standard input, which is read once and kept in a file without a name."""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

from eaft_probe.data.files.options import FileOptions
from eaft_probe.data.files.readers import DataFile
from eaft_probe.data.record import Record, Source, file_fingerprint


class StandardInput(Source):
    """The JSON of a stream, which can be read only once, where planning and scoring read twice.

    The copy has no name: it goes with this process, however that ends. Nobody else can write to it.
    """

    def __init__(self, stream: IO[bytes], options: FileOptions) -> None:
        super().__init__("-")
        self._file = DataFile("standard input", ".json", self._opened, options)
        self._copy = tempfile.TemporaryFile()  # noqa: SIM115  open as long as this is read
        shutil.copyfileobj(stream, self._copy)
        self._copy.flush()

    def records(self) -> Iterator[Record]:
        for row, (line, value) in enumerate(self._file.rows()):
            yield Record(row, self.name, line, value)

    def fingerprint(self) -> str:
        return self._file.fingerprint(file_fingerprint(self._opened()))

    def obeys(self, setting: str) -> bool:
        return setting == "split" and bool(self._file.split)

    def notes(self) -> Sequence[str]:
        return list(filter(None, (self._file.note(),)))

    def _opened(self) -> io.BufferedReader:
        return io.BufferedReader(FromStart(self._copy.fileno()))


class FromStart(io.RawIOBase):
    """An open file read from its start, at a position of its own."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.position = descriptor, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self.descriptor, len(buffer), self.position)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)
