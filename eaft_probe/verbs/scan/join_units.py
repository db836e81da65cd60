"""What scans that keep some of their tokens end with: few parts of many units, and totals."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eaft_probe.scans.part_writer import (
    TOTALS,
    UNITS,
    part_facts,
    part_file,
    sha256,
    write_parquet,
    write_part,
)
from eaft_probe.storage.folder import Folder
from eaft_probe.verbs.scan.fold_totals import folded

# A part holds as many units as stay below both: a row group of tokens, and texts that one process
# holds easily.
PART_TOKENS, PART_BYTES = 500_000, 32_000_000

Tables = tuple[pa.Table, pa.Table]  # of tokens and examples


def join_units(place: Folder, units: int) -> dict[str, Any]:
    """Joins the units' parts and adds up their totals; what the manifest says of both.

    The units stay until the manifest stands: a scan that is killed here goes on from them.
    """
    parts, folder = [], place.path
    for index, (tokens, examples) in enumerate(_parts(folder / UNITS, units)):
        report = {"counts": {"trained_tokens": len(tokens), "examples": len(examples)}}
        write_part(place, index, tokens, examples, report)
        parts.append(part_facts(folder, index, len(tokens)))
    write_parquet(folder / TOTALS, folded(folder / UNITS, units))
    return {"parts": parts, "totals": sha256(folder / TOTALS)}


def _parts(units: Path, count: int) -> Iterator[Tables]:
    """At least one, as a scan has; it may be empty."""
    held: list[Tables] = []
    tokens = size = 0
    for index in range(count):
        unit = _read(units, index)
        if held and not len(unit[1]):
            continue  # of a million units a thousandth may have a token
        longer = tokens + len(unit[0]), size + _bytes(unit[1])
        if held and (longer[0] > PART_TOKENS or longer[1] > PART_BYTES):
            yield _joined(held)
            held, longer = [], (len(unit[0]), _bytes(unit[1]))
        held.append(unit)
        tokens, size = longer
    yield _joined(held)


def _read(units: Path, index: int) -> Tables:
    tokens, examples = (
        pq.read_table(part_file(units, kind, index), partitioning=None)
        for kind in ("tokens", "examples")
    )
    return tokens, examples


def _bytes(examples: pa.Table) -> int:
    sizes = (pc.sum(pc.binary_length(examples[n])).as_py() for n in ("text", "messages"))
    return sum(size or 0 for size in sizes)


def _joined(held: list[Tables]) -> Tables:
    tokens, examples = (pa.concat_tables(tables) for tables in zip(*held, strict=True))
    return tokens.unify_dictionaries().combine_chunks(), examples.replace_schema_metadata()


# --- merge ---
