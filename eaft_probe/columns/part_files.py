"""The files of a scan: their names, and how a part is written and known to be whole."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eaft_probe.columns.parts import FIELDS
from eaft_probe.files import written_aside

PLAN = "plan.json"
PLAN_BYTES = 64_000_000  # a plan of 100,000 merged scans has 40
REJECTED, CONFLICTS = "rejected.jsonl", "conflicts.parquet"
TOTALS = "totals.parquet"  # of a scan that does not keep all of its tokens
UNITS = "units"  # its parts and their totals, until they are joined
GRADIENTS = "gradients.parquet"  # exact norms of a sample of tokens, where somebody took them
CACHE = "cache"  # of figures, by an earlier version; nothing reads it
REPORT_KEY = b"eaft_probe.unit"  # what a unit did besides its rows, in its examples part
RULE_KEY = (
    b"eaft_probe.rule"  # by which conflicts.parquet was flagged, which rule.json may be ahead of
)


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def part_file(folder: Path, kind: str, index: int) -> Path:
    """Of "tokens", "examples" or "totals". Absolute: a relative `a:b/…` would be read as a URL."""
    return folder.absolute() / kind / part_name(index)


def part_folder(folder: Path, keep_tokens: str) -> Path:
    """Where a unit's part is written: into its place, or aside to be joined with others."""
    return folder if keep_tokens == "all" else folder / UNITS


def write_part(
    folder: Path,
    index: int,
    tokens: pa.Table,
    examples: pa.Table,
    report: Mapping[str, Any],
    within: Path | None = None,
    totals: pa.Table | None = None,
    last_row: int | None = None,
) -> None:
    """One unit's files. The examples part is renamed last: where it stands, all do.

    `within`: the folder in which they are written before; see `written_aside`. `totals` and the
    `last_row` of the unit: of a scan that does not keep all of its tokens.
    """
    if totals is not None:
        write_parquet(part_file(folder, "totals", index), totals, within)
        report = {**report, "kept_tokens": len(tokens), "last_row": last_row}
    examples = examples.replace_schema_metadata({REPORT_KEY: json.dumps(report)})
    for kind, table in (("tokens", tokens), ("examples", examples)):
        write_parquet(part_file(folder, kind, index), table, within)


def write_parquet(path: Path, table: pa.Table, within: Path | None = None) -> None:
    with written_aside(path, within) as aside:
        pq.write_table(table, aside.absolute(), **_encoding(table.schema))


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Floats split by byte, counting columns as differences, texts and ids as dictionaries."""
    floats = [f.name for f in schema if pa.types.is_floating(f.type)]
    counting = [n for n in ("position", "char_start", "char_end") if n in schema.names]
    plain = {*floats, *counting}
    return {
        "compression": "zstd",
        "compression_level": 3,  # level 9 saved 1 % and took 2.5 times as long
        "use_dictionary": [f.name for f in schema if f.name not in plain],
        "column_encoding": {
            **dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
            **dict.fromkeys(counting, "DELTA_BINARY_PACKED"),
        },
        "row_group_size": 500_000,  # some 20 MB: dataset viewers open groups up to 100 MB
    }


def unit_report(folder: Path, index: int) -> dict[str, Any] | None:
    """What a finished unit reported; None where it is not finished."""
    try:
        metadata = pq.read_schema(part_file(folder, "examples", index)).metadata or {}
        report = json.loads(metadata[REPORT_KEY])
        rows = pq.read_metadata(part_file(folder, "tokens", index)).num_rows
    except (OSError, KeyError, ValueError, RecursionError, pa.ArrowException):
        return None  # not there, or damaged by a crash: scored again
    wanted = report.get("kept_tokens", report["counts"]["trained_tokens"])
    return report if rows == wanted else None


def part_facts(folder: Path, index: int, rows: int) -> dict[str, Any]:
    """What the manifest says of a part."""
    facts: dict[str, Any] = {"file": part_name(index), "rows": rows}
    for kind, name in FIELDS.items():
        facts[name] = sha256(part_file(folder, kind, index))
    return facts


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
