"""One reader a file type: a file → (line or None, bytes of JSON | row | RowError).

What a file may hold is bounded by construction: a row has a length and a depth.
"""

import csv
import hashlib
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import pyarrow as pa

from eaft_probe.data.files.delimited import read_delimited
from eaft_probe.data.files.json_values import JsonLayout, json_layout
from eaft_probe.data.files.lines import Read, are_json_lines, read_lines, read_paragraphs
from eaft_probe.data.files.options import FileOptions
from eaft_probe.data.files.tables import read_arrow, read_parquet
from eaft_probe.data.files.unpacking import BrokenFile, as_utf8, data_suffix, unpacked, zip_member
from eaft_probe.errors import DataError, one_line

TEXTS: dict[str, Callable[[io.BufferedReader, FileOptions], Read]] = {
    ".jsonl": lambda file, _: read_lines(file),
    ".ndjson": lambda file, _: read_lines(file),
    ".jsonlines": lambda file, _: read_lines(file),
    ".csv": lambda file, options: read_delimited(file, options.delimiter),
    ".tsv": lambda file, options: read_delimited(file, options.delimiter or "\t"),
    ".txt": lambda file, _: read_paragraphs(file),
}
TABLES: dict[str, Callable[[io.BufferedReader], Read]] = {
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
SUFFIXES = (*TEXTS, ".json", *TABLES)
KNOWN = ", ".join((*SUFFIXES, ".zip"))
UNREADABLE = (
    *(OSError, EOFError, UnicodeError, BrokenFile, csv.Error, pa.ArrowException),
    *(lzma.LZMAError, zlib.error, zipfile.BadZipFile, NotImplementedError),
)


@dataclass(frozen=True)
class DataFile:
    """Rows of a file, which can be opened again and again."""

    name: str
    suffix: str
    opened: Callable[[], AbstractContextManager[io.BufferedReader]]
    options: FileOptions

    @classmethod
    def at(cls, path: Path, options: FileOptions) -> "DataFile":
        """Raises `DataError` for a .zip that does not hold one data file."""
        packed = path.suffix.lower() == ".zip"
        member = zip_member(path, SUFFIXES) if packed else None
        return cls(str(path), data_suffix(member or path), partial(unpacked, path, member), options)

    def rows(self) -> Read:
        """The rows, with their lines where the file has lines. Raises `DataError`."""
        with self._readable() as file:
            if self.suffix in TABLES:
                yield from TABLES[self.suffix](file)
                return
            text = as_utf8(file, self.options.encoding)
            if self.suffix == ".json":
                yield from self._layout.read(text)
            else:
                yield from TEXTS[self.suffix](text, self.options)

    def note(self) -> str:
        """Which part of the file is read and which is not, where it has parts."""
        if self.suffix != ".json" or not self._layout.left_out:
            return ""
        others = ", ".join(self._layout.left_out)
        return f"{self.name}: read the rows of {self._layout.part!r}, left out {others}"

    @property
    def split(self) -> str:
        """The split that is read, where the file has splits."""
        return self._layout.split if self.suffix == ".json" else ""

    def fingerprint(self, content: str) -> str:
        """That of the content, and of the split that is read: two of one file are not the same."""
        return (
            hashlib.sha256(f"{content}/{self.split}".encode()).hexdigest()
            if self.split
            else content
        )

    @cached_property
    def _layout(self) -> JsonLayout:
        with self._readable() as file:
            if are_json_lines(as_utf8(file, self.options.encoding)):
                return JsonLayout(read_lines)
        with self._readable() as file:
            return json_layout(as_utf8(file, self.options.encoding), self.options.split)

    @contextmanager
    def _readable(self) -> Iterator[io.BufferedReader]:
        try:
            with self.opened() as file:
                yield file
        except UNREADABLE as error:
            raise DataError(f"cannot read {self.name}: {one_line(error)}") from error


def is_data(path: Path) -> bool:
    """Whether it is a file of a known type."""
    return (data_suffix(path) in SUFFIXES or path.suffix.lower() == ".zip") and path.is_file()
