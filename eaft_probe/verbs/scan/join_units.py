"""What scans that keep some of their tokens end with: few parts of many units, and totals."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eaft_probe.analysis.aggregates import counted
from eaft_probe.analysis.partial_aggregates import MANY, added_up, columns_of, sums_of, table_of
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
from eaft_probe.verbs.merge.inputs import SOURCE, Shard, span
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


def join_totals(folder: Path, shards: Sequence[Shard], kept: Sequence[str]) -> dict[str, Any]:
    """What the manifest says of the totals, where the scans have some."""
    if shards[0].scan.keeps_all:
        return {}
    write_parquet(folder / TOTALS, added_up(_totals(shard, kept) for shard in shards))
    last = shards[-1].first + span(shards[-1].scan) - 1
    return {"totals": sha256(folder / TOTALS), "last_row": last}


def _totals(shard: Shard, kept: Sequence[str]) -> pa.Table:
    """Those of a scan, with the groups of every pass-through column of the whole and of `source`.

    All examples of a scan without such a column have no value there."""
    sums, scan = sums_of(shard.scan.totals), shard.scan
    examples = [scan.manifest["counts"]["examples"], counted(scan).examples_with_conflicts()]
    none = [json.dumps(None)], np.array([examples], np.float64)
    theirs = {new: sums.pop(f"kept:{old}", none) for old, new in shard.kept.items()}
    for name in kept:
        sums[f"kept:{name}"] = theirs.get(name, none)
    before, values = sums.pop(f"kept:{SOURCE}", none)
    named = [MANY if k == MANY else json.dumps(shard.name(json.loads(k))) for k in before]
    return table_of({**sums, f"kept:{SOURCE}": (named, values)}, columns_of(scan.totals))
