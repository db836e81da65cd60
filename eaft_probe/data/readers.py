"""One reader a file type: open binary file → (line or None, bytes | row | RowError).

What a file may hold is bounded by construction: a row has a length and a depth.
"""

import codecs
import csv
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import IO, Any

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from eaft_probe.errors import DataError, RowError, one_line

Value = Any  # of a row: bytes of a JSON line, a parsed row, or the `RowError` that it gave
Read = Iterator[tuple[int | None, Value]]

LONGEST_ROW = 10_000_000  # bytes of a line, paragraph or field; tokens take 100 times that
STARTS, ENDS = ("start_map", "start_array"), ("end_map", "end_array")
DEEPEST = 100  # levels of nesting in a row; what walks it calls itself for each of them
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[][{}]', re.DOTALL)


def data_suffix(path: Path) -> str:
    """The file type, compression taken off: data.jsonl.gz → .jsonl"""
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix.lower()


def parse_json(line: bytes) -> object:
    """The value that a line of JSON stands for. Raises `RowError`."""
    if _too_deep(line):
        raise RowError(f"malformed JSON: more than {DEEPEST} levels deep")
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RowError(f"invalid UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise RowError(f"malformed JSON: {error.msg} at column {error.colno}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of 5000 digits
        raise RowError(f"malformed JSON: {one_line(error)}") from error


def _too_deep(line: bytes) -> bool:
    """Whether it is nested more than DEEPEST levels deep; few lines have that many brackets."""
    if line.count(b"[") + line.count(b"{") <= DEEPEST:
        return False
    steps = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
    depths = accumulate(steps.get(m[0], 0) for m in _BRACKETS.finditer(line))
    return any(depth > DEEPEST for depth in depths)


def read_file(path: Path) -> Read:
    """The rows of a file, with their lines where it has lines. Raises `DataError`."""
    try:
        with path.open("rb") as raw, _unpacked(raw, path.suffix) as file:
            yield from read_stream(file, data_suffix(path))
    except (OSError, csv.Error, pa.ArrowException, UnicodeError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from error


def read_stream(file: io.BufferedReader, suffix: str) -> Read:
    """The rows of an open file of the type that a suffix stands for."""
    if file.peek(3).startswith(codecs.BOM_UTF8):
        file.read(3)
    yield from READERS[suffix](file)


def _unpacked(raw: io.BufferedReader, suffix: str) -> io.BufferedReader:
    """All frames of an archive, which `zstandard` and so fsspec would end after the first.

    Arrow raises OSError where an archive is cut or damaged.
    """
    if suffix not in COMPRESSIONS:
        return raw
    return io.BufferedReader(pa.CompressedInputStream(raw, COMPRESSIONS[suffix]))


def _seekable(file: IO[bytes]) -> IO[bytes]:
    """Tables are read from their end, which a compressed stream cannot give."""
    if file.seekable():
        return file
    copy = tempfile.TemporaryFile()  # noqa: SIM115  closed with the reader that holds it
    shutil.copyfileobj(file, copy)
    copy.seek(0)
    return copy


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | RowError]]:
    """Lines from 1; one that is too long is an error of its own: a few bytes of an archive may
    unpack to a line larger than any memory."""
    lines = iter(partial(file.readline, LONGEST_ROW + 1), b"")
    for number, line in enumerate(lines, 1):
        if len(line) <= LONGEST_ROW:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_ROW)
        yield number, RowError(f"a line of more than {LONGEST_ROW:,} bytes")


def _jsonl(file: IO[bytes]) -> Read:
    for number, line in _lines(file):
        if isinstance(line, RowError) or line.strip():
            yield number, line


def _json(file: io.BufferedReader) -> Read:
    """An array of rows, streamed; a file that begins with an object holds JSON lines."""
    if not file.peek(4096).lstrip().startswith(b"["):
        yield from _jsonl(file)
        return
    try:
        yield from ((None, row) for row in _elements(_Metered(file)))
    except (ijson.JSONError, RowError) as error:
        # The array cannot be followed past this point, so what comes after it is not counted.
        yield None, RowError(f"malformed JSON array, nothing after it read: {one_line(error)}")


@dataclass
class _Metered:
    """A file that gives up where an element is longer than a row may be."""

    file: IO[bytes]
    read_since: int = 0  # bytes

    def read(self, size: int = -1) -> bytes:
        if self.read_since > LONGEST_ROW:
            raise RowError(f"a row of more than {LONGEST_ROW:,} bytes")
        content = self.file.read(size)
        self.read_since += len(content)
        return content


def _elements(file: _Metered) -> Iterator[Value]:
    """The elements of an array. Raises `RowError` where one is too deep, or too long."""
    depth, builder = 0, ijson.ObjectBuilder()
    for event, value in ijson.basic_parse(file, use_float=True):
        depth -= event in ENDS
        if depth:
            builder.event(event, value)
        if depth == 1 and event not in STARTS:
            yield builder.value
            builder, file.read_since = ijson.ObjectBuilder(), 0
        depth += event in STARTS
        if depth > DEEPEST:
            raise RowError(f"more than {DEEPEST} levels deep")


def _csv(file: io.BufferedReader) -> Read:
    csv.field_size_limit(LONGEST_ROW)
    # Undecodable bytes become lone surrogates, which rejects their own row and no other.
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(_bounded_lines(text))
    for row in reader:
        fits = None not in row and None not in row.values()
        yield reader.line_num, row if fits else RowError("not as many fields as the header")


def _bounded_lines(text: io.TextIOWrapper) -> Iterator[str]:
    for line in iter(partial(text.readline, LONGEST_ROW + 1), ""):
        if len(line) > LONGEST_ROW:
            raise csv.Error(f"a line of more than {LONGEST_ROW:,} characters")
        yield line


def _parquet(file: IO[bytes]) -> Read:
    batches = pq.ParquetFile(_seekable(file)).iter_batches(batch_size=256)
    return chain.from_iterable(map(_rows, batches))


def _rows(batch: pa.RecordBatch) -> Read:
    """The rows in Python's types; one with a value that none of them holds (the year 300,000) is
    an error of its own and no other's."""
    try:
        yield from ((None, without_nulls(row)) for row in batch.to_pylist())
    except Exception as error:  # OverflowError, ValueError, pytz's KeyError
        if len(batch) == 1:
            yield None, RowError(f"a value that cannot be read: {one_line(error)}")
        else:
            yield from chain.from_iterable(_rows(batch.slice(i, 1)) for i in range(len(batch)))


def without_nulls(row: Value) -> Value:
    """A row of a table without the nulls that fill up its structs: a struct in Arrow has every
    field that any row of the column has, so {"city": "Rome"} comes back with "zone": None."""
    return {k: _without_nulls(v) for k, v in row.items()} if isinstance(row, dict) else row


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _arrow(file: IO[bytes]) -> Read:
    """The stream format that `datasets` writes, or the file format."""
    file = _seekable(file)
    try:
        reader = pa.ipc.open_stream(file)
    except pa.ArrowInvalid:
        file.seek(0)
        opened = pa.ipc.open_file(file)
        reader = (opened.get_batch(i) for i in range(opened.num_record_batches))
    try:
        for batch in reader:
            batch.validate(full=True)  # Arrow trusts what it maps, and would read beyond its end
            yield from _rows(batch)
    except MemoryError as error:
        raise pa.ArrowInvalid("a batch needs more memory than there is; is it damaged?") from error


def _txt(file: IO[bytes]) -> Read:
    """Blank-line paragraphs, numbered by their first line."""
    first, size, lines = 0, 0, list[bytes]()
    for number, line in chain(_lines(file), [(0, b"")]):  # the end closes the last one
        if isinstance(line, RowError):
            yield number, line
        elif line.strip():
            first = first if size else number
            size += len(line)
            lines.append(line)
            if size > LONGEST_ROW:
                lines.clear()
        elif size:
            yield first, _paragraph(lines)
            size, lines = 0, []


def _paragraph(lines: list[bytes]) -> dict[str, str] | RowError:
    """`lines`: none where there were too many."""
    if not lines:
        return RowError(
            f"a paragraph of more than {LONGEST_ROW:,} bytes; blank lines separate paragraphs"
        )
    try:
        return {"text": b"".join(lines).decode("utf-8-sig").strip()}
    except UnicodeDecodeError as error:
        return RowError(f"invalid UTF-8 at byte {error.start}")


READERS: dict[str, Callable[[io.BufferedReader], Read]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".txt": _txt,
}
