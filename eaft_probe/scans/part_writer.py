"""The files of a scan: their names, and how a part is written and known to be whole."""

import hashlib
import json
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eaft_probe.errors import ScanError
from eaft_probe.scans.verification import FIELDS
from eaft_probe.storage.atomic import written_aside
from eaft_probe.storage.folder import Destination, Folder

PLAN = "plan.json"
PLAN_BYTES = 64_000_000  # a plan of 100,000 merged scans has 40
REJECTED, CONFLICTS = "rejected.jsonl", "conflicts.parquet"
TOTALS = "totals.parquet"  # of a scan that does not keep all of its tokens
UNITS = "units"  # its parts and their totals, until they are joined
GRADIENTS = "gradients.parquet"  # exact norms of a sample of tokens, where somebody took them
CACHE = "cache"  # of figures, by an earlier version; nothing reads it
LOCK = ".lock"  # held by a run of this machine as long as it is at work there
REPORT_KEY = b"eaft_probe.unit"  # what a unit did besides its rows, in its examples part
VIEWABLE = {"compression": "zstd", "write_page_index": True}  # viewers read single pages by it
RULE_KEY = (
    b"eaft_probe.rule"  # by which conflicts.parquet was flagged, which rule.json may be ahead of
)


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def part_file(folder: Path, kind: str, index: int) -> Path:
    """Of "tokens", "examples" or "totals". Absolute: a relative `a:b/…` would be read as a URL."""
    return folder.absolute() / kind / part_name(index)


def write_part(
    folder: Folder,
    index: int,
    tokens: pa.Table,
    examples: pa.Table,
    report: Mapping[str, object],
    plan: str | None = None,
    totals: pa.Table | None = None,
    last_row: int | None = None,
) -> None:
    """One unit's files. The examples part comes last: where it stands, all do.

    `plan`: the digest of what a rerun must match, so that a run of another plan cannot mix in.
    `totals` and the `last_row` of the unit: of a scan that does not keep all of its tokens.
    Raises `ScanError` where another run wrote other bytes.
    """
    files = {} if totals is None else {"totals": parquet_bytes(totals)}
    if totals is not None:
        report = {**report, "kept_tokens": len(tokens), "last_row": last_row}
    files["tokens"] = parquet_bytes(tokens)
    report = {**report, "plan": plan, "tokens_sha256": hashlib.sha256(files["tokens"]).hexdigest()}
    examples = examples.replace_schema_metadata({REPORT_KEY: json.dumps(report)})
    files["examples"] = parquet_bytes(examples)
    if unit_report(folder.path, index, plan) is None:  # what is left is damaged, or another plan's
        # Not by `remove`: another process may have made the folder just now, for its first part.
        part_file(folder.path, "examples", index).unlink(missing_ok=True)
    named = {f"{kind}/{part_name(index)}": data for kind, data in files.items()}
    put_once(folder, named, lambda: unit_report(folder.path, index, plan) is not None)


def put_once(place: Destination, files: Mapping[str, bytes], done: Callable[[], bool]) -> None:
    """A unit's files, the last of which makes it whole, into their places.

    Raises `ScanError` where the unit is `done` by now and some file has other bytes; what a run
    left that died half-way is replaced.
    """
    for name, data in files.items():
        if place.create(name, data) in (None, data):
            continue
        if done():
            raise ScanError(
                f"{place.shown}/{name} was already written with different bytes, by a "
                f"run on different hardware; wait for that run to finish, then run the "
                f"same command again"
            )
        place.put(name, data)


def write_parquet(path: Path, table: pa.Table) -> None:
    with written_aside(path) as aside:
        aside.write_bytes(parquet_bytes(table))


def parquet_bytes(table: pa.Table) -> bytes:
    written = BytesIO()
    pq.write_table(table, written, **_encoding(table.schema))
    return written.getvalue()


def _encoding(schema: pa.Schema) -> dict[str, object]:
    """Floats split by byte, counting columns as differences, texts and ids as dictionaries."""
    floats = [f.name for f in schema if pa.types.is_floating(f.type)]
    counting = [n for n in ("position", "char_start", "char_end") if n in schema.names]
    plain = {*floats, *counting}
    return {
        **VIEWABLE,
        "compression_level": 3,  # level 9 saved 1 % and took 2.5 times as long
        "use_dictionary": [f.name for f in schema if f.name not in plain],
        "column_encoding": {
            **dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
            **dict.fromkeys(counting, "DELTA_BINARY_PACKED"),
        },
        "row_group_size": 500_000,  # some 20 MB: dataset viewers open groups up to 100 MB
    }


def unit_report(folder: Path, index: int, plan: str | None = None) -> dict[str, Any] | None:
    """What a finished unit reported; None where it is not finished, or is of another `plan`."""
    report = stored_report(folder, index)
    try:
        rows = pq.read_metadata(part_file(folder, "tokens", index)).num_rows
    except (OSError, pa.ArrowException):
        return None  # not there, or damaged by a crash: scored again
    if not report or plan not in (None, report.get("plan", plan)):
        return None
    wanted = report.get("kept_tokens", report["counts"]["trained_tokens"])
    return report if rows == wanted else None


def stored_report(folder: Path, index: int) -> dict[str, Any]:
    """What the examples part of a unit says, whether its tokens are there or not."""
    try:
        metadata = pq.read_schema(part_file(folder, "examples", index)).metadata or {}
        return dict(json.loads(metadata[REPORT_KEY]))
    except (OSError, KeyError, ValueError, RecursionError, pa.ArrowException):
        return {}


def part_facts(folder: Path, index: int, rows: int) -> dict[str, Any]:
    """What the manifest says of a part."""
    hashes = {name: sha256(part_file(folder, kind, index)) for kind, name in FIELDS.items()}
    return {"file": part_name(index), "rows": rows, **hashes}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
