"""The parts of a scan against its manifest: what each file is, holds and claims.

Every footer is read, so missing, cut, swapped and bloated parts are found at the cost of opening
the files; contents are hashed up to HASHED bytes of a scan (0.1 s), or all of them on request.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from eaft_probe.errors import ProbeError, ScanError, one_line
from eaft_probe.scans.schemas import OPTIONAL, Fits
from eaft_probe.storage.atomic import file_inside

HASHED = 64_000_000  # bytes of a scan that are hashed whenever it is opened: 2 million tokens
# What a part may claim: row groups are decoded whole. This program writes 500,000 rows a group;
# 500,000 times the same token take 63 kB and unpack to 26 MB, a unit's texts are 1 MB of the data.
GROUP_ROWS = 1_048_576  # what other parquet writers make of a part at most
ROWS_A_BYTE = 100
UNPACKED, UNPACKED_A_BYTE = 64_000_000, 1_000
FIELDS = {"tokens": "sha256", "examples": "examples_sha256"}

Manifest = Mapping[str, Any]  # manifest.json


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """What the table libraries raise over a file as a `ScanError`; `ProbeError` where the memory
    does not do, which says nothing of the file."""
    try:
        yield
    except (MemoryError, duckdb.OutOfMemoryException) as error:  # Arrow's is a MemoryError
        raise ProbeError(f"out of memory while reading {path}: {one_line(error)}") from error
    except (pa.ArrowException, duckdb.Error, OSError) as error:
        raise ScanError(f"{path} is damaged: {one_line(error)}") from error


@dataclass(frozen=True)
class Footer:
    """What the end of a parquet file says of it."""

    schema: pa.Schema
    rows: int
    examples: tuple[int, int] | None = None  # the first and the last, where the file says


def footer(path: Path, fits: Fits, ranges: bool = False, optional: Sequence[str] = ()) -> Footer:
    """Raises `ScanError` for a damaged file, other columns, or claims that no part has.

    `ranges`: of a part, whose examples rise, the first and the last one too; and that numbers are
    missing in `optional` columns alone.
    """
    with reading(path), pq.ParquetFile(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
        wrong = (
            fits(schema)
            or _bloated(metadata, path.stat().st_size)
            or (_empty(metadata, schema, optional) if ranges else None)
        )
        if wrong:
            raise ScanError(f"{path} is damaged: {wrong}")
        column = schema.get_field_index("example")
        examples = _examples(metadata, column, path) if column >= 0 and ranges else None
        return Footer(schema, metadata.num_rows, examples)


def _statistics(metadata: pq.FileMetaData, column: int) -> Iterator[pq.Statistics]:
    """What the footer says of a column, of each row group of which it says anything."""
    for index in range(metadata.num_row_groups):
        if statistics := metadata.row_group(index).column(column).statistics:
            yield statistics


def _empty(metadata: pq.FileMetaData, schema: pa.Schema, optional: Sequence[str]) -> str | None:
    """A number that is missing at some row of a part, as far as the footer says."""
    for column, field in enumerate(schema):
        is_number = pa.types.is_primitive(field.type) and field.name not in optional
        if is_number and any(s.null_count for s in _statistics(metadata, column)):
            return f"{field.name} has no value in some row"
    return None


def _bloated(metadata: pq.FileMetaData, size: int) -> str | None:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    rows, bytes_ = [g.num_rows for g in groups], [g.total_byte_size for g in groups]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        return f"its row groups do not have the {metadata.num_rows:,} rows it claims"
    if max(rows, default=0) > GROUP_ROWS or metadata.num_rows > ROWS_A_BYTE * size:
        return f"it claims {metadata.num_rows:,} rows in {size:,} bytes and {len(rows)} row groups"
    if min(bytes_, default=0) < 0 or sum(bytes_) > UNPACKED + UNPACKED_A_BYTE * size:
        return f"it claims to unpack {size:,} bytes to {sum(bytes_):,}"
    return None


def _examples(metadata: pq.FileMetaData, column: int, path: Path) -> tuple[int, int] | None:
    """The range of `example`, which rises over the row groups."""
    ends = [end for s in _statistics(metadata, column) if s.has_min_max for end in (s.min, s.max)]
    if ends != sorted(ends) or min(ends, default=0) < 0:
        raise ScanError(f"{path} is damaged: its examples are not in order")
    return (ends[0], ends[-1]) if ends else None


def check_parts(folder: Path, manifest: Manifest, fits: Mapping[str, Fits], verify: bool) -> None:
    """Raises `ScanError` where a part is not what the manifest says.

    `fits`: for "tokens" and "examples" what is wrong with a schema. `verify`: every part is
    hashed; else as many, evenly, as HASHED bytes are.
    """
    parts = manifest["parts"]
    files = {kind: _files(folder, kind, [part["file"] for part in parts]) for kind in fits}
    by_turn = manifest["config"].get("turns") == "each"
    optional = {"tokens": OPTIONAL, "examples": () if by_turn else ("turn",)}
    footers = {k: [footer(f, fits[k], True, optional[k]) for f in files[k]] for k in fits}
    _require_rows(folder, manifest, footers)
    for part, file, *pair in zip(parts, files["tokens"], *footers.values(), strict=True):
        _require_alike(file, part["rows"], *pair)
    for kind in fits:
        _require_order(files[kind], footers[kind])
        _require_hashes(files[kind], [part[FIELDS[kind]] for part in parts], verify)


def _files(folder: Path, kind: str, names: Sequence[str]) -> list[Path]:
    inside = folder / kind
    if inside.is_symlink() or not inside.is_dir():
        raise ScanError(f"{inside} is missing, or a link: it should be a folder")
    return [file_inside(inside, name).absolute() for name in names]


def _require_rows(folder: Path, manifest: Manifest, footers: Mapping[str, list[Footer]]) -> None:
    """A scan that keeps some of its tokens (--keep-tokens) has fewer than it scored."""
    counts, some = manifest["counts"], manifest["config"].get("keep_tokens") not in (None, "all")
    examples = counts.get("renderings", counts["examples"])
    for kind, wanted in (("tokens", counts["trained_tokens"]), ("examples", examples)):
        rows = sum(f.rows for f in footers[kind])
        if rows > wanted or (rows < wanted and not some):
            raise ScanError(
                f"{folder} is damaged: {kind}/ has {rows:,} rows, the manifest says {wanted:,}"
            )


def _require_alike(file: Path, rows: int, tokens: Footer, examples: Footer) -> None:
    """A part's tokens are as many as the manifest says, and those of its examples."""
    if tokens.rows != rows:
        raise ScanError(f"{file} has {tokens.rows:,} rows, the manifest says {rows:,}")
    if tokens.examples and examples.examples:
        (first, last), (begin, end) = tokens.examples, examples.examples
        if not begin <= first <= last <= end:
            raise ScanError(
                f"{file} is damaged: it has tokens of examples {first} to {last}, but its part in "
                f"examples/ has {begin} to {end}"
            )


def _require_order(files: list[Path], footers: list[Footer]) -> None:
    ranges = [(f, p.examples) for f, p in zip(files, footers, strict=True) if p.examples]
    for (_, before), (file, examples) in pairwise(ranges):
        if examples[0] <= before[1]:
            raise ScanError(
                f"{file} is damaged, or another part: it begins with example {examples[0]}, the "
                f"one before ends with {before[1]}"
            )


def _require_hashes(files: list[Path], wanted: list[str], verify: bool) -> None:
    for file, hash in _sampled(files, wanted, math.inf if verify else HASHED):
        with reading(file), file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != hash:
                raise ScanError(
                    f"{file} is not the part that the manifest describes: its sha256 differs"
                )


def _sampled(files: list[Path], wanted: list[str], most: float) -> Iterator[tuple[Path, str]]:
    """All, or evenly as many as have `most` bytes."""
    step = max(1, math.ceil(sum(f.stat().st_size for f in files) / most))
    for file, hash in list(zip(files, wanted, strict=True))[::step]:
        size = file.stat().st_size
        if size <= most:
            most -= size
            yield file, hash
