"""`scan`: every trained token of a data set under a model, into a folder of parquet parts.

plan → check the folder → load → score unit after unit → manifest → flag. A unit that is
already there is skipped, so a killed scan goes on where it stopped.
"""

import inspect
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.statistics import chosen_statistics
from eaft_probe.data.formats import RowFormat
from eaft_probe.data.opening import data_format, open_data, selection
from eaft_probe.data.sources import require_outside, require_same_content
from eaft_probe.data.units import Unit, UnitPlan
from eaft_probe.engines import ENGINES
from eaft_probe.engines.torchrun import Ranks, ranks_of
from eaft_probe.engines.unit_queue import Job
from eaft_probe.model.loading import own_tokenizer
from eaft_probe.progress import Progress, Silent
from eaft_probe.scans.folder import begin as begin_scan
from eaft_probe.scans.folder import is_finished, plan_digest
from eaft_probe.scans.part_writer import PLAN, UNITS, part_folder, unit_report
from eaft_probe.scans.scan import Scan
from eaft_probe.scans.schemas import EXAMPLE_COLUMNS
from eaft_probe.scans.upload import Deposit, at_work, sight
from eaft_probe.settings import ScanSettings, make_settings
from eaft_probe.storage.folder import Folder
from eaft_probe.verbs.scan.finish import finish
from eaft_probe.verbs.scan.fold_totals import FOLD, fold
from eaft_probe.verbs.scan.load_scorer import Loading, with_absolute_paths
from eaft_probe.verbs.scan.plan import make_plan, threads, told_date


def scan(
    data: Any = None,
    out: str | Path = "eaft-scan",
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Scan:
    """Scores every trained token of `data` under a model and writes the scan folder `out`,
    or the URL of a store (s3://bucket/scan).

    `data`: a path, folder, glob or hub id, "-" for standard input, a list of rows, a
    `datasets.Dataset`, or None for the bundled demo. Every other argument is a field of
    `ScanSettings` and a flag of `eaft-probe scan`. A finished scan with the same settings is
    returned as it is; an interrupted one goes on. Under a launcher every process calls this, and
    all return the same scan.

    Raises `BadInput` (data, model, flags, another scan or run in `out`) or `ProbeError`.
    """
    chosen: ScanSettings = make_settings(ScanSettings, settings)
    progress = progress or Silent()
    ranks = ranks_of(chosen.engine, chosen.device, chosen.tp)
    return _scan(data, out, chosen, Silent() if ranks.rank else progress, ranks)


def _scan(
    data: Any, out: str | Path, settings: ScanSettings, progress: Progress, ranks: Ranks
) -> Scan:
    require_outside(out, data)
    source = open_data(data, settings)
    row_format = data_format(source, settings, EXAMPLE_COLUMNS)
    units = UnitPlan.of(source, selection(settings), settings.rows_per_unit)
    chosen_statistics(settings.statistics, settings.reference is not None)
    ENGINES[settings.engine]
    plan, finished = ranks.shared(
        _planned(out, make_plan(source, row_format, units, settings), settings)
        if not ranks.rank
        else None
    )
    settings = replace(settings, today=plan.get("today", settings.today))
    if not finished:
        with at_work(out, plan, settings.overwrite, progress, ranks) as (folder, deposit):
            done = not ranks.rank and is_finished(folder.path, plan, settings.overwrite)
            if not ranks.shared(done):  # by another run, by now
                _score(folder, deposit, units, row_format, plan, settings, progress, ranks)
    opened = Scan.open(out)
    shutil.rmtree(opened.path / UNITS, ignore_errors=True)  # a run died between its last two steps
    return opened if ranks.rank else _flagged(opened, settings)


def _planned(
    out: str | Path, plan: dict[str, Any], settings: ScanSettings
) -> tuple[dict[str, Any], bool]:
    """The plan with what an earlier run into `out` has settled, and whether that is finished."""
    with sight(out) as folder:
        plan["threads"] = threads(folder, settings, plan["device"])
        if "today" in plan:
            plan["today"] = told_date(folder / PLAN, settings.today, settings.overwrite)
        return plan, is_finished(folder, plan, settings.overwrite)


def _flagged(finished: Scan, settings: ScanSettings) -> Scan:
    """Flagged by the rule that the settings ask for, where it is another than there is."""
    thresholds = (settings.entropy_below, settings.prob_below, settings.quantile)
    rule = ConflictRule.given(*thresholds)
    if not finished.is_flagged or (
        any(t is not None for t in thresholds) and not _same(finished.rule, rule)
    ):
        finished.flag(rule)
    finished.conflicts_file()  # whole, if a `flag` was killed meanwhile
    return finished


def _same(stored: ConflictRule, asked: ConflictRule) -> bool:
    """A stored quantile rule holds the thresholds it resolved to; asked ones not yet."""
    by_quantile = asked.quantile is not None and stored.quantile == asked.quantile
    return by_quantile or stored == asked


# --- scoring ---


def _score(
    folder: Folder,
    deposit: Deposit | None,
    units: UnitPlan,
    row_format: RowFormat,
    plan: dict[str, Any],
    settings: ScanSettings,
    progress: Progress,
    ranks: Ranks,
) -> None:
    facts, digest = dict[str, Any](), plan_digest(plan)
    parts = part_folder(folder.path, settings.keep_tokens)

    def begin(told: Mapping[str, Any]) -> Iterator[Unit]:
        """The folder is touched only once a model stands: a typo must not cost an old scan."""
        facts.update(told)
        for said in ("template_limits", "unshared"):
            if told.get(said):
                progress.note(told[said])
        with ranks.first():
            if ranks.writes:
                begin_scan(folder, plan, settings.overwrite and not ranks.rank)
            if deposit:
                deposit.begin(folder, settings.overwrite and not ranks.rank)
        progress.start("scan", units.rows // ranks.shares)
        for unit in filter(ranks.takes, units.units()):
            if ranks.writes and parts != folder.path and unit.index % FOLD == 0:
                fold(parts, unit.index)
            if ranks.agreed(unit_report(parts, unit.index, digest) is None):
                yield unit
            else:  # an earlier run has finished it
                progress.advance(len(unit.records), 0)

    absolute = with_absolute_paths(settings)
    load = Loading(
        folder.path.absolute() if ranks.writes else None,
        plan,
        row_format,
        absolute,
        plan["tokens_per_batch"],
        plan["threads"],
        deposit,
    )
    progress.note(f"loading {settings.model}")
    if own_tokenizer(settings.adapter):
        progress.note(f"tokenizer and chat template are those of {settings.adapter}")
    # A model that spreads itself over devices is loaded as the settings say.
    spread = settings.tp or settings.device_map is not None
    job = Job(
        load,
        begin,
        progress,
        units.count,
        None if spread else ranks.device(plan["device"]),
        1 if ranks.size > 1 else settings.workers,
        plan["threads"],
        settings.address,
    )
    ENGINES[settings.engine](job)
    ranks.wait()
    with ranks.first():
        if not ranks.rank:
            require_same_content(units.source, plan["data"]["fingerprint"])
            if deposit:
                deposit.gather(folder)
            finish(folder, plan, settings, facts)
            if deposit:
                deposit.close(folder)


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
