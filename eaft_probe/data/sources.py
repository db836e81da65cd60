"""Where rows come from: files, folders, globs, saved or hub data sets, standard input, memory.

A source can be read again and again in the same order, holds one record at a time, and never
parses more than it must: a JSON line stays bytes until its unit is scored.
"""

import codecs
import csv
import glob
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Protocol

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from eaft_probe.errors import BadInput, DataError, ProbeError, RowError, one_line
from eaft_probe.storage.atomic import require_utf8
from eaft_probe.storage.remote import HUB_ID, Store, local, name_of

DEMO = Path(__file__).with_name("demo.jsonl")
LONGEST_ROW = 10_000_000  # bytes of a line, paragraph or field; tokens take 100 times that
DEEPEST = 100  # levels of nesting in a row; what walks it calls itself for each of them
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the data, not yet understood."""

    row: int  # from 0, over all files
    file: str
    line: int | None  # from 1, where the file has lines
    value: Any  # bytes of one JSON line, or the parsed row

    def parse(self) -> dict[str, Any]:
        """The row as a dictionary. Raises `RowError` where it is none."""
        value = _parse_json(self.value) if isinstance(self.value, bytes) else self.value
        if isinstance(value, RowError):
            raise value
        if not isinstance(value, dict):
            raise RowError(f"expected a JSON object, found {type(value).__name__}")
        return value

    @property
    def size(self) -> int:
        """Bytes of a JSON line; for parsed rows the characters of their values."""
        if isinstance(self.value, bytes):
            return len(self.value)
        return sum(len(str(v)) for v in self.value.values()) if isinstance(self.value, dict) else 0


class Source(Protocol):
    """A data set that can be read more than once."""

    @property
    def name(self) -> str: ...

    def records(self) -> Iterator[Record]: ...

    def fingerprint(self) -> str: ...

    def files(self) -> dict[str, str]:
        """File → its fingerprint alone, where there are files."""

    def require_unchanged(self) -> None:
        """Raises `ProbeError` where a file is no longer the one that was opened, as far as its
        size, time and inode tell."""

    def reopened(self) -> "Source":
        """The same data, with nothing remembered of them."""


def require_same_content(source: Source, fingerprint: str) -> None:
    """The last look, before what was made of the data counts as finished: a file that was changed
    within a tick of the file system's clock has the size and the time that it had.

    Raises `ProbeError`."""
    source.require_unchanged()
    if source.reopened().fingerprint() != fingerprint:
        raise ProbeError(f"{source.name} changed while it was being read; start again with "
                         f"--overwrite")  # fmt: skip


class Stamps:
    """Size, time and inode of files as they were when this was made."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.then = {path: _stamp(path) for path in paths}

    def require(self) -> None:
        """Raises `ProbeError` where one of them has changed."""
        for path, then in self.then.items():
            if _stamp(path) != then:
                raise ProbeError(f"{path} changed while it was being read; put the old file back "
                                 f"and rerun, or start again with --overwrite")  # fmt: skip


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        now = path.stat()
    except OSError:
        return None
    return now.st_size, now.st_mtime_ns, now.st_ino


@dataclass(frozen=True)
class Files:
    """Rows of one or more files, one after the other."""

    name: str
    paths: tuple[Path, ...]
    _stamps: Stamps = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_stamps", Stamps(self.paths))  # before anything is read

    def records(self) -> Iterator[Record]:
        row, names = 0, dict(zip(self.paths, self._names, strict=True))
        for path in self.paths:
            for line, value in _read(path):
                yield Record(row, names[path], line, value)
                row += 1

    def fingerprint(self) -> str:
        """sha256 over the content of every file; names and places do not matter.

        Of several files: over the fingerprints that each has alone, which is what scans of each,
        merged, have.
        """
        together = hashlib.sha256("".join(self._alone).encode()).hexdigest()
        return self._alone[0] if len(self.paths) == 1 else together

    def files(self) -> dict[str, str]:
        return dict(zip(self._names, self._alone, strict=True))

    @cached_property
    def _names(self) -> list[str]:
        """The paths from the folder that holds them all: parts and lists of rejected rows are
        passed on, and where the data lay on this machine is nobody's business."""
        if self.name == "-":
            return ["-"]
        whole = [path.absolute() for path in self.paths]
        folder = os.path.commonpath([path.parent for path in whole])
        return [path.relative_to(folder).as_posix() for path in whole]

    @cached_property
    def _alone(self) -> list[str]:
        found = []
        for path in self.paths:
            with path.open("rb") as file:
                found.append(_fingerprint(file))
        return found

    def require_unchanged(self) -> None:
        self._stamps.require()

    def reopened(self) -> "Files":
        return Files(self.name, self.paths)


def _fingerprint(file: Any) -> str:
    content = hashlib.file_digest(file, "sha256").digest()
    return hashlib.sha256(content).hexdigest()


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
        for row, (line, value) in enumerate(_parsed(self._opened(), ".jsonl")):
            yield Record(row, self.name, line, value)

    def fingerprint(self) -> str:
        return _fingerprint(self._opened())

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


@dataclass(frozen=True)
class Rows:
    """Rows already in memory or memory-mapped: a list of dictionaries or a `datasets.Dataset`."""

    name: str
    rows: Sequence[Any]
    _stamps: Stamps = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        mapped = getattr(self.rows, "cache_files", ())  # the files that a data set lies in
        object.__setattr__(self, "_stamps", Stamps(Path(f["filename"]) for f in mapped))

    def records(self) -> Iterator[Record]:
        of_arrow = hasattr(self.rows, "_fingerprint")  # a `datasets.Dataset`
        for row, value in enumerate(self.rows):
            yield Record(row, name_of(self.name), None, without_nulls(value) if of_arrow else value)

    def fingerprint(self) -> str:
        known = getattr(self.rows, "_fingerprint", None)
        if known is not None:
            return str(known)
        digest = hashlib.sha256()
        for value in self.rows:
            digest.update(json.dumps(value, default=str, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()

    def files(self) -> dict[str, str]:
        return {}

    def require_unchanged(self) -> None:
        self._stamps.require()

    def reopened(self) -> "Rows":
        return self


def open_source(
    data: Any,
    *,
    config_name: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> Source:
    """Finds the data that `data` names.

    `data` is None (the bundled demo), a path, a folder, a glob, a hub id, "-" for JSON lines on
    standard input, a list of dictionaries or a `datasets.Dataset`. Raises `DataError`.
    """
    if data is None:
        return Files("demo", (DEMO,))
    if not isinstance(data, str | Path):
        return Rows("rows", data)
    name = str(data)
    require_utf8(name)
    if name == "-":
        if sys.stdin is None:
            raise DataError("standard input is closed, and `-` reads from it")
        return Spooled.of("-", sys.stdin.buffer)
    if not name.strip():  # Path("") is the folder that one happens to stand in
        raise DataError("DATA is an empty name; `.` is this folder")
    try:
        path = Path(name).expanduser()
        path.stat()
    except FileNotFoundError:
        pass  # a hub id or a pattern
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, ~nobody
        raise DataError(f"cannot read {name[:60]}: {one_line(error)}") from error
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        return Rows(name, _from_disk(path, split))
    if path.is_dir():
        return Files(name, _readable(path.rglob("*")) or _empty(name))
    if path.exists():
        if not path.is_file():  # it is read twice: to plan, and to score
            raise DataError(f"{name} is no plain file; `-` reads JSON lines from standard input")
        if _suffix(path) not in READERS:
            raise DataError(f"{name}: unknown file type; expected one of {', '.join(READERS)}")
        return Files(name, (path,))
    if any(c in name for c in "*?["):
        found = _readable(Path(p) for p in glob.glob(name, recursive=True))
        return Files(name, found or _empty(name))
    if HUB_ID.fullmatch(name) and _suffix(path) not in READERS and not path.parent.exists():
        return Rows(name, _from_hub(name, config_name, split, revision))
    raise DataError(f"no such file or folder: {name}")


def require_outside(out: str | Path, data: Any, flag: str = "--out") -> None:
    """Raises `BadInput` where the next run would read `out` as data, or it is the data."""
    if not isinstance(data, str | Path) or str(data) == "-" or Store.of(out):
        return
    place, given = local(out).resolve(), os.path.expanduser(data)
    if os.path.exists(given):
        inside = place.is_relative_to(Path(given).resolve())
    else:
        files = (Path(p) for p in glob.iglob(given, recursive=True))
        inside = any(p.is_file() and p.resolve().is_relative_to(place) for p in files)
    if inside:
        raise BadInput(f"{flag} {out} lies in the data, {data}: the next run would read it as "
                       f"data; choose another place")  # fmt: skip


def _readable(paths: Iterator[Path]) -> tuple[Path, ...]:
    found = tuple(sorted(p for p in paths if _suffix(p) in READERS and p.is_file()))
    for path in found:
        require_utf8(path)
    return found


def _empty(name: str) -> tuple[Path, ...]:
    raise DataError(f"{name}: no data files there; looked for {', '.join(READERS)}")


def _suffix(path: Path) -> str:
    """The file type, compression taken off: data.jsonl.gz → .jsonl"""
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix.lower()


def _from_disk(path: Path, split: str) -> Sequence[Any]:
    import datasets

    loaded = datasets.load_from_disk(str(path))
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded  # type: ignore[no-any-return]
    if split not in loaded:
        raise DataError(f"{path} has no split {split!r}; --split takes {', '.join(loaded)}")
    return loaded[split]  # type: ignore[no-any-return]


def _from_hub(name: str, config: str | None, split: str, revision: str | None) -> Sequence[Any]:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, revision=revision)  # type: ignore[no-any-return]
    except Exception as error:  # the hub client raises some twenty kinds
        raise DataError(
            f"{name} is no file here, and the hub did not give it as a data set: {one_line(error)}"
        ) from error


def _parse_json(line: bytes) -> Any:
    if _depth(line) > DEEPEST:
        raise RowError(f"malformed JSON: more than {DEEPEST} levels deep")
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RowError(f"invalid UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise RowError(f"malformed JSON: {error.msg} at column {error.colno}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of 5000 digits
        raise RowError(f"malformed JSON: {one_line(error)}") from error


def _depth(line: bytes) -> int:
    """Levels of nesting, or a smaller bound on them where that is no more than DEEPEST."""
    if (most := line.count(b"[") + line.count(b"{")) <= DEEPEST:
        return most
    brackets = (b for b in _BRACKETS.findall(line) if not b.startswith(b'"'))
    return max(accumulate(1 if b in b"[{" else -1 for b in brackets), default=0)


_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[][{}]', re.DOTALL)


# --- one reader a file type: open binary file → (line or None, bytes | row | RowError) ---

Read = Iterator[tuple[int | None, Any]]


def _read(path: Path) -> Read:
    try:
        with path.open("rb") as raw, _unpacked(raw, path.suffix) as file:
            yield from _parsed(file, _suffix(path))
    except (OSError, csv.Error, pa.ArrowException, UnicodeError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from error


def _parsed(file: io.BufferedReader, suffix: str) -> Read:
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


def _seekable(file: Any) -> Any:
    """Tables are read from their end, which a compressed stream cannot give."""
    if file.seekable():
        return file
    copy = tempfile.TemporaryFile()  # noqa: SIM115  closed with the reader that holds it
    shutil.copyfileobj(file, copy)
    copy.seek(0)
    return copy


def _lines(file: Any) -> Iterator[tuple[int, Any]]:
    """Lines from 1; one that is too long is an error of its own: a few bytes of an archive may
    unpack to a line larger than any memory."""
    number = 0
    while line := file.readline(LONGEST_ROW + 1):
        number += 1
        if len(line) <= LONGEST_ROW:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_ROW)
        yield number, RowError(f"a line of more than {LONGEST_ROW:,} bytes")


def _jsonl(file: Any) -> Read:
    for number, line in _lines(file):
        if isinstance(line, RowError) or line.strip():
            yield number, line


def _json(file: Any) -> Read:
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

    file: Any
    read_since: int = 0  # bytes

    def read(self, size: int = -1) -> bytes:
        if self.read_since > LONGEST_ROW:
            raise RowError(f"a row of more than {LONGEST_ROW:,} bytes")
        content: bytes = self.file.read(size)
        self.read_since += len(content)
        return content


STARTS, ENDS = ("start_map", "start_array"), ("end_map", "end_array")


def _elements(file: _Metered) -> Iterator[Any]:
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


def _csv(file: Any) -> Read:
    csv.field_size_limit(LONGEST_ROW)
    # Undecodable bytes become lone surrogates, which rejects their own row and no other.
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(_bounded_lines(text))
    for row in reader:
        fits = None not in row and None not in row.values()
        yield reader.line_num, row if fits else RowError("not as many fields as the header")


def _bounded_lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(LONGEST_ROW + 1):
        if len(line) > LONGEST_ROW:
            raise csv.Error(f"a line of more than {LONGEST_ROW:,} characters")
        yield line


def _parquet(file: Any) -> Read:
    for batch in pq.ParquetFile(_seekable(file)).iter_batches(batch_size=256):
        yield from ((None, row) for row in _rows(batch))


def _rows(batch: pa.RecordBatch) -> Iterator[Any]:
    """The rows in Python's types; one that none of them holds (the year 300,000) is an error of
    its own and no other's."""
    try:
        yield from map(without_nulls, batch.to_pylist())
        return
    except Exception as error:  # OverflowError, ValueError, pytz's KeyError
        if len(batch) == 1:
            yield RowError(f"a value that cannot be read: {one_line(error)}")
            return
    for at in range(len(batch)):
        yield from _rows(batch.slice(at, 1))


def without_nulls(row: Any) -> Any:
    """A row of a table without the nulls that fill up its structs: a struct in Arrow has every
    field that any row of the column has, so {"city": "Rome"} comes back with "zone": None."""
    return {k: _without_nulls(v) for k, v in row.items()} if isinstance(row, dict) else row


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _arrow(file: Any) -> Read:
    """The stream format that `datasets` writes, or the file format."""
    file = _seekable(file)
    try:
        reader = pa.ipc.open_stream(file)
    except pa.ArrowInvalid:
        file.seek(0)
        opened = pa.ipc.open_file(file)
        reader = (opened.get_batch(i) for i in range(opened.num_record_batches))
    for batch in reader:
        batch.validate(full=True)  # Arrow trusts what it maps, and would read beyond its end
        yield from ((None, row) for row in _rows(batch))


def _txt(file: Any) -> Read:
    """Blank-line paragraphs, numbered by their first line."""
    first, size, lines = 0, 0, list[bytes]()
    for number, line in _lines(file):
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
    if size:
        yield first, _paragraph(lines)


def _paragraph(lines: list[bytes]) -> Any:
    """`lines`: none where there were too many."""
    if not lines:
        return RowError(f"a paragraph of more than {LONGEST_ROW:,} bytes; blank lines part them")
    try:
        return {"text": b"".join(lines).decode("utf-8-sig").strip()}
    except UnicodeDecodeError as error:
        return RowError(f"invalid UTF-8 at byte {error.start}")


READERS: dict[str, Callable[[Any], Read]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".txt": _txt,
}
