"""`scan`: every trained token of a data set under a model, into a folder of parquet parts.

plan → check the folder → load → score unit after unit → manifest → flag. A unit that is already
there is skipped, so a killed scan goes on where it stopped.
"""

import hashlib
import inspect
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.statistics import Statistic, chosen_statistics
from eaft_probe.columns.table import (
    CONFLICTS,
    EXAMPLE_COLUMNS,
    REJECTED,
    Scan,
    part_name,
    unit_report,
    write_manifest,
)
from eaft_probe.data.formats import FORMATS, MAPPABLE, RowFormat, infer_format
from eaft_probe.data.sources import Source, open_source
from eaft_probe.data.units import Selection, Unit, UnitPlan
from eaft_probe.engines import local
from eaft_probe.errors import BadInput, DataError, ProbeError, RowError, one_line
from eaft_probe.files import written_aside
from eaft_probe.model.loading import CausalLM, load_model
from eaft_probe.progress import Progress, Silent
from eaft_probe.settings import ScanSettings, make_settings
from eaft_probe.verbs.plan import is_finished, make_plan, prepare
from eaft_probe.verbs.score import Scorer

FORMAT_ROWS = 100  # rows looked at to infer the format; malformed ones come first at times
PACKAGES = ("eaft-probe", "torch", "transformers", "tokenizers", "pyarrow", "numpy")


def scan(
    data: Any = None,
    out: str | Path = "eaft-scan",
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Scan:
    """Scores every trained token of `data` under a model and writes the scan folder `out`.

    `data`: a path, folder, glob or hub id, "-" for standard input, a list of rows, a
    `datasets.Dataset`, or None for the bundled demo. Every other argument is a field of
    `ScanSettings` and a flag of `eaft-probe scan`. A finished scan with the same settings is
    returned as it is; an interrupted one goes on.

    Raises `BadInput` (data, model, flags, another scan in `out`) or `ProbeError`.
    """
    chosen: ScanSettings = make_settings(ScanSettings, settings)
    progress = progress or Silent()
    folder = Path(out)
    source = open_data(data, chosen)
    row_format = data_format(source, chosen)
    units = UnitPlan.of(source, selection(chosen), chosen.rows_per_unit)
    statistics = chosen_statistics(chosen.statistics, chosen.reference is not None)
    plan = make_plan(source, row_format, units, chosen)
    if not is_finished(folder, plan, chosen.overwrite):
        # The folder is touched only once the models stand: a typo must not cost an old scan.
        scorer = _scorer(folder, row_format, statistics, plan, chosen, progress)
        prepare(folder, plan, chosen.overwrite)
        _score(folder, units, plan, chosen, scorer, progress)
    finished = Scan.open(folder)
    thresholds = (chosen.entropy_below, chosen.prob_below, chosen.quantile)
    rule = ConflictRule.given(*thresholds)
    flagged = (folder / CONFLICTS).exists()
    if not flagged or (any(t is not None for t in thresholds) and not _same(finished.rule, rule)):
        finished.flag(rule)
    return finished


def open_data(data: Any, settings: ScanSettings) -> Source:
    """The source that `data` and the settings name."""
    return open_source(
        data,
        config_name=settings.config_name,
        split=settings.split,
        revision=settings.data_revision or settings.revision,
    )


def data_format(source: Source, settings: ScanSettings) -> RowFormat:
    """The format the user named, or the one that the first rows fit.

    Raises `FormatError`, or `BadInput` where --keep names a column that cannot be kept.
    """
    rows, reasons = list[Mapping[str, Any]](), list[str]()
    for record in islice(source.records(), FORMAT_ROWS):
        try:
            rows.append(record.parse())
        except RowError as error:
            reasons.append(str(error))
    if not rows:
        why = f"none of its first rows can be read: {reasons[0]}" if reasons else "it has no rows"
        raise DataError(f"{source.name}: {why}")
    known = {key for row in rows for key in row} | {k for row in rows for k in _inner(row)}
    for ours, theirs in settings.columns.items():
        if theirs not in known:
            raise BadInput(f"--columns {ours}={theirs}: the data has no {theirs!r}")
        if ours not in MAPPABLE:
            raise BadInput(f"--columns {ours}=…: no format has a column {ours!r}")
    for name in settings.keep:
        if name in EXAMPLE_COLUMNS:
            raise BadInput(f"--keep {name}: the examples have a column of that name anyway")
        if not any(name in row for row in rows):
            raise BadInput(f"--keep {name}: no such column; there are {', '.join(rows[0])}")
    if settings.format is not None:
        FORMATS[settings.format]
        return RowFormat(settings.format, settings.columns)
    return infer_format(rows, settings.columns)


def _inner(row: Mapping[str, Any]) -> Iterator[str]:
    """The keys of a row's messages, which --columns role=…,content=… may name."""
    for value in row.values():
        for item in value if isinstance(value, list) else ():
            if isinstance(item, dict):
                yield from item


def selection(settings: ScanSettings) -> Selection:
    """The rows that --limit, --sample and --seed choose."""
    return Selection(settings.limit, settings.sample, settings.seed)


def _same(stored: ConflictRule, asked: ConflictRule) -> bool:
    """A stored quantile rule holds the thresholds it resolved to; asked ones not yet."""
    by_quantile = asked.quantile is not None and stored.quantile == asked.quantile
    return by_quantile or stored == asked


# --- scoring ---


def _scorer(
    folder: Path,
    row_format: RowFormat,
    statistics: Sequence[Statistic],
    plan: dict[str, Any],
    settings: ScanSettings,
    progress: Progress,
) -> Scorer:
    """The loaded and proven models, with all that scoring a unit needs."""
    progress.note(f"loading {settings.model}")
    model = _load(settings.model, settings)
    reference = None
    if settings.reference is not None:
        reference = _load(settings.reference, settings, adapter=None)
        require_same_vocabulary(model, reference, settings.reference, settings.model)
    return Scorer(folder, model, reference, row_format, statistics, settings,
                    plan["tokens_per_batch"], progress)  # fmt: skip


def _score(
    folder: Path,
    units: UnitPlan,
    plan: dict[str, Any],
    settings: ScanSettings,
    scorer: Scorer,
    progress: Progress,
) -> None:
    done = _Done(folder)
    progress.start("scan", units.rows)
    try:
        local.run((u for u in units.units() if not done.skips(u, progress)), scorer.score)
        _finish(folder, units.count, plan, settings, scorer)
    except OSError as error:
        raise ProbeError(
            f"cannot write to {folder}: {error.strerror or one_line(error)}; what is finished "
            f"stays, the same command goes on from there"
        ) from error


@dataclass(frozen=True)
class _Done:
    """The units that an earlier run finished."""

    folder: Path

    def skips(self, unit: Unit, progress: Progress) -> bool:
        report = unit_report(self.folder, unit.index)
        if report is not None:
            progress.advance(len(unit.records), 0)
        return report is not None


def _load(name: str, settings: ScanSettings, **changed: Any) -> CausalLM:
    return load_model(name, **settings.loading() | changed)


def require_same_vocabulary(
    model: CausalLM, reference: CausalLM, reference_name: str, name: str
) -> None:
    """Raises `BadInput` where the two models' distributions cannot be compared."""
    same = model.tokenizer.get_vocab() == reference.tokenizer.get_vocab()
    if not same or model.head.vocab_size != reference.head.vocab_size:
        raise BadInput(
            f"--reference {reference_name} has another vocabulary than {name}; "
            f"their distributions cannot be compared"
        )


def _finish(
    folder: Path,
    count: int,
    plan: dict[str, Any],
    settings: ScanSettings,
    scorer: Scorer,
) -> None:
    """rejected.jsonl, then the manifest: from then on the scan is complete."""
    totals: dict[str, int] = {}
    parts = []
    with written_aside(folder / REJECTED) as aside, aside.open("w") as file:
        for index in range(count):
            report = unit_report(folder, index) or {}
            file.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in report["rejected"])
            parts.append({"file": part_name(index), **_part_facts(folder, index, report)})
            for name, value in report["counts"].items():
                totals[name] = totals.get(name, 0) + value
    if not totals["trained_tokens"]:
        for kind in ("tokens", "examples"):  # nothing that a corrected command should respect
            shutil.rmtree(folder / kind)
        raise DataError(
            f"nothing to score in {plan['data']['source']}: all {totals['rejected']} rows were "
            f"rejected; {folder / REJECTED} says why"
        )
    write_manifest(
        folder,
        {
            "command": "scan",
            "config": asdict(settings),
            "model": _model_facts(plan, settings, scorer.model),
            "data": plan["data"],
            "chat_template": plan["chat_template"],
            "columns": scorer.column_names,
            "parts": parts,
            "counts": totals,
            "special_tokens": sorted(scorer.special_tokens),
            "versions": {name: _version(name) for name in PACKAGES},
        },
    )


def _part_facts(folder: Path, index: int, report: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"rows": report["counts"]["trained_tokens"]}
    for kind in ("tokens", "examples"):
        with (folder / kind / part_name(index)).open("rb") as file:
            name = "sha256" if kind == "tokens" else "examples_sha256"
            facts[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return facts


def _model_facts(plan: dict[str, Any], settings: ScanSettings, model: CausalLM) -> dict[str, Any]:
    return {
        "name": settings.model,
        "adapter": settings.adapter,
        "revision": settings.revision,
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": model.parameters,
        "vocab_size": model.head.vocab_size,
        "hidden_size": model.head.weight.shape[1],
        "max_length": settings.max_length or model.max_length,
        "identity": plan["model_identity"],
        "adapter_identity": plan["adapter_identity"],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None


# `help(scan)` shows every setting with its default, from the one place that defines them.
scan.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [p for p in inspect.signature(scan).parameters.values() if p.kind is not p.VAR_KEYWORD]
    + [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(ScanSettings(), f.name),
            annotation=f.type,
        )
        for f in fields(ScanSettings)
    ]
)
