"""The parts of a scan against its manifest: what each file is, holds and claims.

Every footer is read, so missing, cut, swapped and bloated parts are found at the cost of opening
the files; contents are hashed up to HASHED bytes of a scan (0.1 s), or all of them on request.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from eaft_probe.errors import ProbeError, ScanError, one_line
from eaft_probe.storage.atomic import own_file

HASHED = 64_000_000  # bytes of a scan that are hashed whenever it is opened: 2 million tokens
# What a part may claim: row groups are decoded whole. This program writes 500,000 rows a group;
# 500,000 times the same token take 63 kB and unpack to 26 MB, a unit's texts are 1 MB of the data.
GROUP_ROWS = 1_048_576  # what other parquet writers make of a part at most
ROWS_A_BYTE = 100
UNPACKED, UNPACKED_A_BYTE = 64_000_000, 1_000
FIELDS = {"tokens": "sha256", "examples": "examples_sha256"}

Fits = Callable[[pa.Schema], str | None]  # what is wrong with the columns of a part


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
    first: int | None  # the smallest and the largest `example`, where the file says
    last: int | None


def footer(path: Path, fits: Fits, ranges: bool = False, optional: Sequence[str] = ()) -> Footer:
    """Raises `ScanError` for a damaged file, other columns, or claims that no part has.

    `ranges`: of a part, whose examples rise, the first and the last one too; and that numbers are
    missing in `optional` columns alone.
    """
    with reading(path), pq.ParquetFile(path) as file:
        schema, said = file.schema_arrow, file.metadata
        wrong = (
            fits(schema)
            or _bloated(said, path.stat().st_size)
            or (_empty(said, schema, optional) if ranges else None)
        )
        if wrong:
            raise ScanError(f"{path} is damaged: {wrong}")
        at = schema.get_field_index("example")
        ends = _examples(said, at, path) if at >= 0 and ranges else (None, None)
        return Footer(schema, said.num_rows, *ends)


def _empty(said: pq.FileMetaData, schema: pa.Schema, optional: Sequence[str]) -> str | None:
    """A number that is missing at some row of a part, as far as the footer says."""
    numbers = [
        i for i, f in enumerate(schema) if pa.types.is_primitive(f.type) and f.name not in optional
    ]
    for index in range(said.num_row_groups):
        group = said.row_group(index)
        for at in numbers:
            found = group.column(at).statistics
            if found is not None and found.null_count:
                return f"{schema.names[at]} has no value at some row"
    return None


def _bloated(said: pq.FileMetaData, size: int) -> str | None:
    groups = [said.row_group(i) for i in range(said.num_row_groups)]
    rows, unpacked = [g.num_rows for g in groups], sum(g.total_byte_size for g in groups)
    if min(rows, default=0) < 0 or sum(rows) != said.num_rows:
        return f"its row groups do not have the {said.num_rows:,} rows it claims"
    if max(rows, default=0) > GROUP_ROWS or said.num_rows > ROWS_A_BYTE * size:
        return f"it claims {said.num_rows:,} rows in {size:,} bytes and {len(rows)} row groups"
    if min((g.total_byte_size for g in groups), default=0) < 0 or (
        unpacked > UNPACKED + UNPACKED_A_BYTE * size
    ):
        return f"it claims to unpack {size:,} bytes to {unpacked:,}"
    return None


def _examples(said: pq.FileMetaData, at: int, path: Path) -> tuple[int | None, int | None]:
    """The range of `example`, which rises over the row groups."""
    first = last = None
    for index in range(said.num_row_groups):
        found = said.row_group(index).column(at).statistics
        if found is None or not found.has_min_max:
            continue
        if found.min < (0 if last is None else last) or found.max < found.min:
            raise ScanError(f"{path} is damaged: its examples are not in order")
        first, last = found.min if first is None else first, found.max
    return first, last


def check_parts(
    folder: Path, manifest: Mapping[str, Any], fits: Mapping[str, Fits], verify: bool
) -> None:
    """Raises `ScanError` where a part is not what the manifest says.

    `fits`: for "tokens" and "examples" what is wrong with a schema. `verify`: every part is
    hashed; else as many, evenly, as HASHED bytes are.
    """
    files = {kind: _files(folder, kind, manifest["parts"]) for kind in fits}
    by_turn = manifest["config"].get("turns") == "each"
    optional = {"tokens": (), "examples": () if by_turn else ("turn",)}
    footers = {k: [footer(f, fits[k], True, optional[k]) for f in files[k]] for k in fits}
    wanted = [part["rows"] for part in manifest["parts"]]
    for rows, file, found in zip(wanted, files["tokens"], footers["tokens"], strict=True):
        if found.rows != rows:
            raise ScanError(f"{file} has {found.rows:,} rows, the manifest says {rows:,}")
    _require_totals(folder, manifest, footers)
    for file, *pair in zip(files["tokens"], footers["tokens"], footers["examples"], strict=True):
        _require_alike(file, *pair)
    for kind in fits:
        _require_order(files[kind], footers[kind])
        _require_hashes(files[kind], [p[FIELDS[kind]] for p in manifest["parts"]], verify)


def _files(folder: Path, kind: str, parts: list[dict[str, Any]]) -> list[Path]:
    inside = folder / kind
    if inside.is_symlink() or not inside.is_dir():
        raise ScanError(f"{inside} is missing, or a link: it should be a folder")
    return [own_file(inside, part["file"]).absolute() for part in parts]


def _require_totals(
    folder: Path, manifest: Mapping[str, Any], footers: Mapping[str, list[Footer]]
) -> None:
    """A scan that keeps some of its tokens (--keep-tokens) has fewer than it scored."""
    counts, some = manifest["counts"], manifest["config"].get("keep_tokens") not in (None, "all")
    examples = counts.get("renderings", counts["examples"])
    for kind, wanted in (("tokens", counts["trained_tokens"]), ("examples", examples)):
        rows = sum(f.rows for f in footers[kind])
        if rows > wanted or (rows < wanted and not some):
            raise ScanError(
                f"{folder} is damaged: {rows:,} rows in {kind}/, the manifest counts {wanted:,}"
            )


def _require_alike(file: Path, tokens: Footer, examples: Footer) -> None:
    """A part's tokens are those of its examples."""
    ends = [examples.first, tokens.first, tokens.last, examples.last]
    known = [end for end in ends if end is not None]
    if known != sorted(known):
        raise ScanError(
            f"{file} is damaged: examples {tokens.first} to {tokens.last}, beside "
            f"{examples.first} to {examples.last} in examples/"
        )


def _require_order(files: list[Path], footers: list[Footer]) -> None:
    last = -1
    for file, found in zip(files, footers, strict=True):
        if found.first is not None and found.last is not None:
            if found.first <= last:
                raise ScanError(
                    f"{file} is damaged, or another part: it begins with example "
                    f"{found.first}, the one before ends with {last}"
                )
            last = found.last


def _require_hashes(files: list[Path], wanted: list[str], verify: bool) -> None:
    for file, hash in _chosen(files, wanted, verify):
        with reading(file), file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != hash:
                raise ScanError(
                    f"{file} is not the part that the manifest describes: its sha256 differs"
                )


def _chosen(files: list[Path], wanted: list[str], verify: bool) -> Iterator[tuple[Path, str]]:
    """All, or evenly as many as are HASHED bytes."""
    every = max(1, -(-sum(f.stat().st_size for f in files) // HASHED))
    left = None if verify else HASHED
    for file, hash in list(zip(files, wanted, strict=True))[:: 1 if verify else every]:
        size = file.stat().st_size
        if left is not None and size > left:
            continue
        left = None if left is None else left - size
        yield file, hash
