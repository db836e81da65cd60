"""`scan`: every trained token of a data set under a model, into a folder of parquet parts.

plan → check the folder → load → score unit after unit → manifest → flag. A unit that is
already there is skipped, so a killed scan goes on where it stopped.
"""

import inspect
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from eaft_probe.analysis.calibration import rule_of
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.statistics import chosen_statistics
from eaft_probe.data.formats import RowFormat
from eaft_probe.data.opening import data_format, open_data, require_obeyed, selection
from eaft_probe.data.sources import require_outside, require_same_content
from eaft_probe.data.units import Unit, UnitPlan
from eaft_probe.engines import ENGINES
from eaft_probe.engines.torchrun import Ranks, ranks_of
from eaft_probe.engines.unit_queue import Job
from eaft_probe.errors import BadInput
from eaft_probe.model.loaded import borrowed
from eaft_probe.model.loading import CausalLM, own_tokenizer
from eaft_probe.progress import Progress, Silent
from eaft_probe.progress_bar import watched
from eaft_probe.scans.folder import Plan, earlier_plan, has_parts, is_finished, plan_digest
from eaft_probe.scans.part_writer import UNITS, unit_report
from eaft_probe.scans.scan import Scan
from eaft_probe.scans.schemas import EXAMPLE_COLUMNS
from eaft_probe.scans.upload import Workspace, destination, workspace
from eaft_probe.settings import QUANTIZED, ModelSettings, ScanSettings, make_settings
from eaft_probe.storage.folder import Folder
from eaft_probe.verbs.scan.finish import finish
from eaft_probe.verbs.scan.fold_totals import FOLD, fold
from eaft_probe.verbs.scan.load_scorer import Loading, with_absolute_paths
from eaft_probe.verbs.scan.perturbation import Perturbation
from eaft_probe.verbs.scan.plan import make_plan, template_date, threads


@watched
def scan(
    data: Any = None,
    out: str | Path = "eaft-scan",
    *,
    model: str | torch.nn.Module = "smollm2",
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Scan:
    """Scores every trained token of `data` under a model and writes the scan folder `out`,
    or the URL of a store (s3://bucket/scan).

    `data`: a path, folder, glob or hub id, "-" for standard input, or rows: a list, a
    `datasets.Dataset`, a `DatasetDict` of which `split` is read, a pandas frame, or a generator,
    which is copied to a temporary file. None: the bundled demo.
    `model`: a name as `--model` takes it, or a loaded model of transformers or PEFT, quantized or
    in training, with its `tokenizer`. It is scored in evaluation mode and is afterwards as it was.

    Every other argument is a field of `ScanSettings` and a flag of `eaft-probe scan`. A finished
    scan with the same settings is returned as it is; an interrupted one goes on. Under a launcher
    every process calls this, and all return the same scan.

    Raises `BadInput` (data, model, flags, another scan or run in `out`) or `ProbeError`.
    """
    name = {"model": model} if isinstance(model, str) else {}
    chosen: ScanSettings = make_settings(ScanSettings, settings | name)
    chosen.require_sample()
    progress = progress or Silent()
    ranks = ranks_of(chosen.engine, chosen.device, chosen.tp)
    progress = Silent() if ranks.rank else progress
    if isinstance(model, str):
        if tokenizer is not None:
            raise BadInput(f"tokenizer= goes with a loaded model; {model} brings its own")
        return _scan(data, out, chosen, progress, ranks)
    _require_not_loaded_again(chosen)
    with borrowed(model, tokenizer) as held:
        return _scan(data, out, replace(chosen, model=held.name), progress, ranks, held)


def perturbed_scan(
    data: Any,
    out: str | Path,
    settings: ScanSettings,
    perturbation: Perturbation,
    progress: Progress,
) -> Scan:
    """The same units, parts and resumption, under a model that has moved a small step."""
    ranks = ranks_of(settings.engine, settings.device, settings.tp)
    return _scan(data, out, settings, progress, ranks, perturbation=perturbation)


def _require_not_loaded_again(settings: ScanSettings) -> None:
    """Raises `BadInput` where settings say how the model that is given should be loaded."""
    defaults = ScanSettings()
    for name in (*(f.name for f in fields(ModelSettings)), *QUANTIZED, "engine", "workers", "tp"):
        if getattr(settings, name) != getattr(defaults, name):
            raise BadInput(f"the model is loaded already: leave out {name}=")


def _scan(
    data: Any,
    out: str | Path,
    settings: ScanSettings,
    progress: Progress,
    ranks: Ranks,
    held: CausalLM | None = None,
    perturbation: Perturbation | None = None,
) -> Scan:
    require_outside(out, data)
    source = open_data(data, settings, progress.note)
    require_obeyed(source, settings)
    row_format = data_format(source, settings, EXAMPLE_COLUMNS)
    units = UnitPlan.of(source, selection(settings), settings.rows_per_unit)
    chosen_statistics(settings.statistics, settings.reference is not None)
    ENGINES[settings.engine]
    moved = {} if perturbation is None else {"perturbation": perturbation.plan()}
    plan, finished = ranks.shared(
        _planned(out, make_plan(source, row_format, units, settings, held) | moved, settings)
        if not ranks.rank
        else None
    )
    settings = replace(settings, today=plan.get("today", settings.today))
    if not finished:
        with workspace(out, plan, settings.overwrite, progress, ranks) as work:
            done = not ranks.rank and is_finished(work.folder, plan, settings.overwrite)
            if not ranks.shared(done):  # by another run, by now
                run = _Run(work, units, row_format, settings, progress, ranks, held, perturbation)
                run.score()
    opened = Scan.open(out)
    shutil.rmtree(opened.path / UNITS, ignore_errors=True)  # a run died between its last two steps
    return opened if ranks.rank else _flagged(opened, settings)


def _planned(out: str | Path, plan: Plan, settings: ScanSettings) -> tuple[Plan, bool]:
    """The plan with what an earlier run into `out` has settled, and whether that is finished."""
    place = destination(out)
    earlier = {} if settings.overwrite else earlier_plan(place)
    resumed = earlier if has_parts(place.names()) else {}
    settled: dict[str, object] = {"threads": threads(settings, plan["device"], resumed)}
    if "today" in plan:
        settled["today"] = template_date(settings.today, earlier)
    plan = {**plan, **settled}
    return plan, is_finished(place, plan, settings.overwrite)


def _flagged(finished: Scan, settings: ScanSettings) -> Scan:
    """Flagged by the rule that the settings ask for, where it is another than there is."""
    rule = rule_of(finished, settings)
    if not finished.is_flagged or (settings.names_rule and not _same(finished.rule, rule)):
        finished.flag(rule)
    finished.conflicts_file()  # whole, if a `flag` was killed meanwhile
    return finished


def _same(stored: ConflictRule, asked: ConflictRule) -> bool:
    """A stored quantile rule holds the thresholds it resolved to; asked ones not yet."""
    by_quantile = asked.quantile is not None and stored.quantile == asked.quantile
    return by_quantile or stored == asked


# --- scoring ---


@dataclass(frozen=True)
class _Run:
    """One scan at work: its units are scored, and the manifest is written."""

    work: Workspace
    units: UnitPlan
    row_format: RowFormat
    settings: ScanSettings
    progress: Progress
    ranks: Ranks
    held: CausalLM | None = None
    perturbation: Perturbation | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # of the model, once it is loaded

    def score(self) -> None:
        if self.held is None:
            self.progress.note(f"loading {self.settings.model}")
        if own_tokenizer(self.settings.adapter):
            self.progress.note(f"tokenizer and chat template are those of {self.settings.adapter}")
        ENGINES[self.settings.engine](self._job())
        self.ranks.wait()
        with self.ranks.first():
            if not self.ranks.rank:
                require_same_content(self.units.source, self.work.plan["data"]["fingerprint"])
                self.work.gather()
                finish(self.work, self.settings, self.facts)
                self.work.close()

    def _job(self) -> Job:
        plan, settings, ranks = self.work.plan, self.settings, self.ranks
        work = replace(self.work, folder=Folder(self.work.folder.path.absolute()))
        load = Loading(
            work if ranks.writes else None,
            self.row_format,
            with_absolute_paths(settings),
            plan["tokens_per_batch"],
            plan["threads"],
            self.held,
            self.perturbation,
        )
        # A model that spreads itself over devices is loaded as the settings say.
        spread = settings.tp or settings.device_map is not None
        return Job(
            load,
            self._begin,
            self.progress,
            self.units.count,
            device=None if spread else ranks.device(plan["device"]),
            workers=1 if ranks.size > 1 or self.held else settings.workers,
            threads=plan["threads"],
            gpus=settings.gpus,
            address=settings.address,
        )

    def _begin(self, facts: Mapping[str, Any]) -> Iterator[Unit]:
        """The folder is touched only once a model stands: a typo must not cost an old scan."""
        self.facts.update(facts)
        for note in filter(None, (facts.get("template_limits"), facts.get("unshared"))):
            self.progress.note(note)
        with self.ranks.first():
            if self.ranks.writes:
                self.work.begin(self.settings.overwrite and not self.ranks.rank)
        self.progress.start("scan", self.units.rows // self.ranks.shares)
        for unit in filter(self.ranks.takes, self.units.units()):
            if self._is_left(unit):
                yield unit
            else:  # an earlier run has finished it
                self.progress.advance(len(unit.records), 0)

    def _is_left(self, unit: Unit) -> bool:
        parts = self.work.units
        if self.ranks.writes and parts != self.work.folder.path and unit.index % FOLD == 0:
            fold(parts, unit.index)
        digest = plan_digest(self.work.plan)
        return self.ranks.agreed(unit_report(parts, unit.index, digest) is None)


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
        if f.name != "model"
    ]
)
