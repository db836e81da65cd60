"""`merge`: finished scans of disjoint data as one scan, without the model.

open → refuse what does not belong together → plan → part after part → rejected rows → exact norms →
manifest → flag. A part is read and written at a time, so memory does not grow with the scans; a
killed merge goes on with the same command.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eaft_probe.analysis import exact_gradients
from eaft_probe.analysis.aggregates import counted
from eaft_probe.analysis.exact_gradients import FullGradients
from eaft_probe.analysis.partial_aggregates import MANY, added_up, columns_of, sums_of, table_of
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.engines.torchrun import Ranks
from eaft_probe.errors import ScanError
from eaft_probe.progress import Progress, Silent
from eaft_probe.progress_bar import watched
from eaft_probe.scans.folder import Plan, is_finished, stored_plan
from eaft_probe.scans.manifest import SUMS, write_manifest
from eaft_probe.scans.part_writer import (
    GRADIENTS,
    REJECTED,
    TOTALS,
    part_facts,
    part_file,
    sha256,
    unit_report,
    write_parquet,
    write_part,
)
from eaft_probe.scans.rejections import rejected
from eaft_probe.scans.scan import Scan
from eaft_probe.scans.schemas import column_field, examples_schema
from eaft_probe.scans.upload import destination, workspace
from eaft_probe.scans.verification import reading
from eaft_probe.settings import MergeSettings, make_settings
from eaft_probe.storage.atomic import written_aside
from eaft_probe.storage.folder import Folder
from eaft_probe.verbs.merge.inputs import (
    SOURCE,
    Row,
    Shard,
    common,
    data_of,
    is_merged,
    require_alike,
    require_disjoint,
    shards_of,
    span,
)

SOURCE_FIELD = column_field(SOURCE, pa.string(), "", "the data that the example came from")
OPENED = ("model", "adapter")  # as the first scan's command named them, for `gradients`
FROM_PLAN = ("model_files", "reference_identity", "today")


@watched
def merge(
    scans: Sequence[Scan | str | Path],
    out: str | Path,
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Scan:
    """Joins finished scans of disjoint data, in the order given, into the scan folder `out`.

    `example` is renumbered by the rows of the scans before, and the examples get a column
    `source`. Exact norms come along where all scans have them, of samples made alike. The rule is
    that of the scans where it is the same in all (a quantile is found again over the whole), else
    the default. Every other argument is a field of `MergeSettings` and a flag of `eaft-probe
    merge`.

    Raises `BadInput` where the scans are of the same data, or were made under another model,
    dtype, template, mask or with other columns; `ScanError` for a damaged one.
    """
    chosen: MergeSettings = make_settings(MergeSettings, settings)
    opened = [s if isinstance(s, Scan) else Scan.open(s) for s in scans]
    require_disjoint(opened, out)
    require_alike(opened)
    shards, progress = shards_of(opened), progress or Silent()
    plan = _plan(shards)
    if not is_finished(destination(out), plan, chosen.overwrite):
        with workspace(out, plan, chosen.overwrite, progress, Ranks()) as work:
            work.begin(chosen.overwrite)
            _join(work.folder, shards, plan, progress)
            work.close()
    merged = Scan.open(out)
    if not merged.is_flagged:
        merged.flag(_rule(opened, progress))
    return merged


# --- what the whole is ---


def _plan(shards: Sequence[Shard]) -> Plan:
    """What a rerun must repeat: the same scans, unchanged, in the same order."""
    stored, manifest = stored_plan(shards[0].scan), shards[0].scan.manifest
    paths = stored.get("opened") or stored.get("settings") or {}
    return {
        "merged": [
            hashlib.sha256(json.dumps(s.scan.manifest, sort_keys=True).encode()).hexdigest()
            for s in shards
        ],
        "data": data_of(shards),
        "model_identity": manifest["model"].get("identity"),
        "adapter_identity": manifest["model"].get("adapter_identity"),
        "chat_template": manifest["chat_template"],
        "opened": {**{n: paths.get(n) for n in OPENED}, "data": _places(shards)},
        **{name: stored[name] for name in FROM_PLAN if name in stored},
    }


def _places(shards: Sequence[Shard]) -> dict[str, str]:
    """Fingerprint of each data set → the path or id by which it was opened, for `export`."""
    places = dict[str, str]()
    for plan in (stored_plan(shard.scan) for shard in shards):
        data = plan.get("data") or {}
        own = {data["fingerprint"]: data["source"]} if "fingerprint" in data else {}
        places.update(plan.get("opened", {}).get("data") or own)
    return places


def _rule(scans: Sequence[Scan], progress: Progress) -> ConflictRule:
    """The rule of all scans, or the default one."""
    rules = [scan.rule for scan in scans]
    asked = [r.quantile or r.thresholds for r in rules]
    if common(asked) is None:
        shown = "; ".join(dict.fromkeys(map(str, rules)))
        progress.note(
            f"the scans are flagged by different rules ({shown}), so the whole is flagged by "
            f"the default rule; `eaft-probe flag` sets another"
        )
        return ConflictRule()
    return rules[0] if rules[0].quantile is None else ConflictRule(quantile=rules[0].quantile)


# --- writing ---


def _join(folder: Folder, shards: Sequence[Shard], plan: Plan, progress: Progress) -> None:
    parts = [(s, index) for s in shards for index in range(len(s.scan.manifest["parts"]))]
    progress.start("merge", len(parts))
    keep = list(dict.fromkeys(name for shard in shards for name in shard.kept.values()))
    facts = []
    for number, (shard, index) in enumerate(parts):
        facts.append(_join_part(folder, number, shard, index, keep))
        progress.advance(1, facts[-1]["rows"])
    _join_rejected(folder.path, shards)
    manifest = _manifest(shards, plan, facts, keep) | join_totals(folder.path, shards, keep)
    _join_gradients(Scan(folder.path, manifest), shards, progress)
    write_manifest(folder, manifest)


def _join_rejected(folder: Path, shards: Sequence[Shard]) -> None:
    with written_aside(folder / REJECTED) as path, path.open("w", encoding="utf-8") as file:
        for shard in shards:
            for row in rejected(shard.scan):
                file.write(json.dumps(shard.number(row), ensure_ascii=False) + "\n")


def _join_gradients(merged: Scan, shards: Sequence[Shard], progress: Progress) -> None:
    """The exact norms, where every scan has them and of samples made alike."""
    missing = [s.scan.path for s in shards if not (s.scan.path / GRADIENTS).exists()]
    if len(missing) == len(shards):
        return
    try:
        if missing:
            raise ScanError(f"{missing[0]} has none")
        samples = [FullGradients.open(s.scan) for s in shards]
        exact_gradients.join(merged, samples, [s.first for s in shards])
    except ScanError as error:
        progress.note(
            f"{GRADIENTS} is left out: {error}; `eaft-probe gradients {merged.path}` "
            f"makes one of the whole"
        )


def _join_part(folder: Folder, number: int, shard: Shard, index: int, keep: Sequence[str]) -> Row:
    """Part `index` of a scan as part `number` of the whole, unless it is there; its facts."""
    if unit_report(folder.path, number) is None:
        tokens, examples = _read(shard, index)
        counts = {"trained_tokens": len(tokens), "examples": len(examples)}
        tables = _renumbered(tokens, shard), _named(examples, shard, keep)
        write_part(folder, number, *tables, {"counts": counts})
    rows = pq.read_metadata(part_file(folder.path, "tokens", number)).num_rows
    return part_facts(folder.path, number, rows)


def _read(shard: Shard, index: int) -> tuple[pa.Table, pa.Table]:
    """Tokens and examples of a part. Raises `ScanError` where it is not as its manifest says:
    damage must not get new, good hashes."""
    scan, facts = shard.scan, shard.scan.manifest["parts"][index]
    files = [scan.part_files(kind)[index] for kind in ("tokens", "examples")]
    with reading(files[0]):
        stored = part_facts(scan.path, index, facts["rows"])
        tokens, examples = (pq.read_table(f, partitioning=None) for f in files)
    if stored != facts or len(tokens) != facts["rows"]:
        raise ScanError(f"{files[0]} or its examples are damaged: not what the manifest says")
    return tokens, examples


def _renumbered(table: pa.Table, shard: Shard) -> pa.Table:
    """The rows under their number in the whole."""
    index = table.schema.get_field_index("example")
    return table.set_column(index, table.schema.field(index), pc.add(table["example"], shard.first))


def _named(examples: pa.Table, shard: Shard, keep: Sequence[str]) -> pa.Table:
    """The examples under their number, with every pass-through column of the whole and `source`."""
    sources = examples[SOURCE].to_pylist() if is_merged(shard.scan) else [None] * len(examples)
    own = [n for n in examples.column_names if n not in {*shard.kept, SOURCE}]
    table = _renumbered(examples, shard).select([*own, *shard.kept])
    table = table.rename_columns([*own, *shard.kept.values()])
    schema = examples_schema(keep)
    arrays = [
        pc.cast(table[f.name], f.type)
        if f.name in table.column_names
        else pa.nulls(len(table), f.type)
        for f in schema
    ]
    names = pa.array([shard.name(source) for source in sources], pa.string())
    return pa.table([*arrays, names], schema=schema.append(SOURCE_FIELD))


def _manifest(
    shards: Sequence[Shard],
    plan: Plan,
    parts: Sequence[Row],
    keep: Sequence[str],
) -> Row:
    """That of the first scan, with what the others change; settings that differ are null."""
    manifests = [shard.scan.manifest for shard in shards]
    first, counts = manifests[0], Counter[str]()
    sums = {name: Counter[str]() for name in SUMS}
    for manifest in manifests:
        for name in SUMS:
            sums[name].update(manifest["counts"].get(name, {}))
        counts.update({n: c for n, c in manifest["counts"].items() if n not in SUMS})
    config = {name: common(m["config"].get(name) for m in manifests) for name in first["config"]}
    versions = [m.get("versions", {}) for m in manifests]
    return {
        **{k: v for k, v in first.items() if k != "schema_version"},
        "command": "merge",
        "config": {**config, "keep": [*keep, SOURCE]},
        "data": plan["data"],
        "parts": list(parts),
        "counts": {**counts, **{name: dict(total) for name, total in sums.items()}},
        "versions": {n: common(v.get(n) for v in versions) for n in versions[0]},
    }


def join_totals(folder: Path, shards: Sequence[Shard], keep: Sequence[str]) -> Row:
    """What the manifest says of the totals, where the scans have some."""
    if shards[0].scan.keeps_all:
        return {}
    write_parquet(folder / TOTALS, added_up(_totals(shard, keep) for shard in shards))
    return {
        "totals": sha256(folder / TOTALS),
        "last_row": shards[-1].first + span(shards[-1].scan) - 1,
    }


def _totals(shard: Shard, keep: Sequence[str]) -> pa.Table:
    """Those of a scan, with the groups of every pass-through column of the whole and of `source`.

    All examples of a scan without such a column have no value there."""
    sums, scan = sums_of(shard.scan.totals), shard.scan
    examples = [scan.manifest["counts"]["examples"], counted(scan).examples_with_conflicts()]
    none = [json.dumps(None)], np.array([examples], np.float64)
    theirs = {new: sums.pop(f"kept:{old}", none) for old, new in shard.kept.items()}
    for name in keep:
        sums[f"kept:{name}"] = theirs.get(name, none)
    before, values = sums.pop(f"kept:{SOURCE}", none)
    named = [MANY if k == MANY else json.dumps(shard.name(json.loads(k))) for k in before]
    return table_of({**sums, f"kept:{SOURCE}": (named, values)}, columns_of(scan.totals))
