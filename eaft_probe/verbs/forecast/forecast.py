"""`forecast`: what each objective would teach and cost this model, before training.

scan → gradients of the retained and the held-out rows → two perturbed scans each, the alignment of
every token → a check by exact backward passes → one step along each objective's gradient.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa

from eaft_probe.analysis.exact_gradients import scan_identity
from eaft_probe.data.opening import open_data
from eaft_probe.errors import BadInput
from eaft_probe.model.loading import resolve_device
from eaft_probe.objectives.gates import OBJECTIVES, chosen_objectives
from eaft_probe.objectives.objective import Objective
from eaft_probe.progress import Progress, Silent
from eaft_probe.quantities import counted_noun, number
from eaft_probe.scans.alignment import (
    ALIGNMENT,
    FORECAST,
    alignment_manifest,
    finished_forecast,
    forecast_table,
    how_made,
    unfinished,
)
from eaft_probe.scans.part_writer import write_parquet
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import ForecastSettings, RuleSettings, make_settings
from eaft_probe.settings.option import flag
from eaft_probe.storage.atomic import write_json
from eaft_probe.storage.remote import Store, without_paths
from eaft_probe.verbs.forecast import alignment
from eaft_probe.verbs.forecast.first_order import REFERENCE, by_objective, first_order
from eaft_probe.verbs.forecast.frontier import Frontier
from eaft_probe.verbs.forecast.loaded import Loaded, load, of_any_data, of_like_data, of_scan
from eaft_probe.verbs.forecast.step_gates import step_gates
from eaft_probe.verbs.scan.perturbation import Lora
from eaft_probe.verbs.scan.scan import scan as scan_verb

DEFAULT = [n for n in OBJECTIVES if n not in ("rho", "tail", "sft-kl", "asft")]


@dataclass(frozen=True)
class Forecast:
    """A finished forecast: the scan, one row an objective, and how it was made."""

    scan: Scan
    table: pandas.DataFrame
    made: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """What `forecast --json` prints; numbers of an objective under its name."""
        facts = {n: v for n, v in self.made.items() if n != "made"}
        return {"path": self.scan.place, **facts, "objectives": by_objective(self.table)}

    def __str__(self) -> str:
        return how_made(self.made)

    def first_order(
        self, objectives: Sequence[str] = (), set: Mapping[str, object] | None = None
    ) -> pandas.DataFrame:
        """A row for each objective, by default every one, without the model: the changes of the two
        mean nll (nats) for a plain step of size 1 along its gradient, and their `ratio`. `set`:
        fields of the objectives. Raises `UnknownName`, `BadInput`."""
        return first_order(self.scan.path, objectives, set)

    @classmethod
    def open(cls, folder: str | Path) -> "Forecast":
        """Raises `BadInput` where `folder` is no finished forecast."""
        scan = Scan.open(folder)
        made = finished_forecast(scan.path)
        if made is None:
            raise unfinished(scan.path)
        return cls(scan, forecast_table(scan.path), made)


def forecast(
    data: Any = None,
    out: str | Path = "eaft-forecast",
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Forecast:
    """Forecasts what training on `data` would do to a model, into the folder `out`.

    `out` is a complete scan of `data` with the alignment of every token, columns `retain_alignment`
    and `eval_alignment`, and `forecast.parquet`, a row for each objective. `data` as in `scan`;
    every other argument is a field of `ForecastSettings` and a flag of `eaft-probe forecast`. A
    finished forecast with the same settings is returned as it is; an interrupted one continues.
    Raises `BadInput`, or `ProbeError` where a pass fails.
    """
    chosen: ForecastSettings = make_settings(ForecastSettings, settings)
    if Store.of(out) is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BadInput("a forecast is made by one process, in a folder of this machine")
    if chosen.dtype == "auto" and resolve_device(chosen.device) != "cpu":
        raise BadInput(
            "on a GPU a model may be in half precision, where differences of two passes are noise; "
            "give --dtype float32"
        )
    if chosen.retain_data is None:
        raise BadInput("a forecast needs data that must not be forgotten: give --retain-data R")
    given = (data, chosen.retain_data, chosen.eval_data)
    if any(isinstance(d, Iterator) or (isinstance(d, str | Path) and str(d) == "-") for d in given):
        raise BadInput("a forecast reads its data several times: give a file or a list of rows")
    return _Run(data, Path(out), chosen, progress or Silent()).run()


@dataclass
class _Run:
    """One forecast at work."""

    data: Any
    out: Path
    settings: ForecastSettings
    progress: Progress

    def run(self) -> Forecast:
        objectives, config = self._objectives(), self._config()
        self._require_same(config)
        if self.settings.overwrite or not (self.out / FORECAST).exists():
            self.progress.note(self._cost(objectives))
            _ = self.loaded  # which says that rows are too few, before the long work
        scan = self._scanned()
        made = {"scan": scan_identity(scan), **config}
        stored = {} if self.settings.overwrite else alignment_manifest(scan.path) or {}
        if stored.get("made") != made or not (scan.path / FORECAST).exists():
            for file in (FORECAST, f"{ALIGNMENT}/manifest.json"):
                (scan.path / file).unlink(missing_ok=True)
            self._forecast(scan, objectives, made)
        else:
            self._add(scan, objectives, stored["step_length"])
        return Forecast.open(scan.path)

    def _objectives(self) -> list[Objective]:
        names = [*dict.fromkeys(["sft", *(self.settings.objective or DEFAULT)])]
        chosen = chosen_objectives(names, self.settings.set)
        if self.settings.reference is None and "rho" in names:
            raise BadInput("objective 'rho' compares with a reference model; give --reference M")
        return chosen

    def _cost(self, objectives: Sequence[Objective]) -> str:
        s = self.settings
        return (
            f"this takes a scan of the data and four more of the same cost, gradients of "
            f"{s.eval_tokens:,} tokens each of retained and held-out data, "
            f"{s.checks:,} backward passes to check, and "
            f"{self._cost_of_steps(objectives)}"
        )

    def _cost_of_steps(self, objectives: Sequence[Objective]) -> str:
        gradients = "one gradient" if self.settings.step == "plain" else "three gradients"
        return (
            f"for each of {counted_noun(len(objectives), 'objective')} one backward pass of "
            f"{self.settings.step_tokens:,} tokens and two measurements of the retained and "
            f"held-out data; memory: that of a backward pass, a copy of the weights, {gradients}"
        )

    def _require_same(self, config: dict[str, Any]) -> None:
        """Raises `BadInput` where the folder holds a finished forecast with other settings."""
        made = (alignment_manifest(self.out) or {}).get("made")
        if self.settings.overwrite or made is None:
            return
        other = [n for n in {**made, **config} if n != "scan" and made.get(n) != config.get(n)]
        if other:
            raise BadInput(
                f"{self.out} holds a finished forecast with other settings "
                f"({', '.join(map(flag, other))}); choose another --out, which with --scan "
                f"{self.out} takes what is alike, or --overwrite"
            )

    # --- the scan ---

    def _scanned(self) -> Scan:
        given, taken = self.settings.scan, not (self.out / "manifest.json").exists()
        if given is not None:
            self._take(Scan.open(given, verify=taken))
        try:
            return scan_verb(
                self.data, self.out, progress=self.progress, **asdict(of_scan(self.settings))
            )
        except BadInput:
            if given is not None and taken:  # it is a scan of something else
                shutil.rmtree(self.out)
            raise

    def _take(self, finished: Scan) -> None:
        """Copies the parts of a scan, and alignment, into the folder, which is empty or has them.
        Raises `BadInput`."""
        if (self.out / "manifest.json").exists():
            if Scan.open(self.out).manifest["parts"] != finished.manifest["parts"]:
                raise BadInput(
                    f"{self.out} already holds another scan than {finished.path}; choose another "
                    f"--out, or remove --scan"
                )
            return
        if self.out.exists() and any(self.out.iterdir()):
            raise BadInput(f"{self.out} is not empty; choose another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        for kind in ("tokens", "examples"):
            shutil.copytree(finished.path / kind, self.out / kind)
        if (finished.path / ALIGNMENT).exists():  # what it is of is compared before it is used
            unlike = shutil.ignore_patterns("manifest.json", "work", REFERENCE)
            shutil.copytree(finished.path / ALIGNMENT, self.out / ALIGNMENT, ignore=unlike)
        for name in ("plan.json", "rejected.jsonl", "manifest.json"):
            shutil.copy2(finished.path / name, self.out / name)

    def _config(self) -> dict[str, Any]:
        """What a rerun must repeat, besides the scan. Raises `BadInput` for data that cannot be
        opened, before the long work."""
        free = {"overwrite", "workers", "threads", "engine", "address", "scan", "objective", "set"}
        config = {k: v for k, v in without_paths(asdict(self.settings)).items() if k not in free}
        readings = {"retain_data": of_any_data, "eval_data": of_like_data}
        for name, reading in readings.items():
            given = getattr(self.settings, name)
            if given is not None:
                source = open_data(given, reading(self.settings), self.progress.note)
                config[name] = source.fingerprint()
        plain: dict[str, Any] = json.loads(json.dumps(config))
        return plain

    # --- gradients, alignment, steps ---

    def _forecast(self, scan: Scan, objectives: Sequence[Objective], made: dict[str, Any]) -> None:
        s, loaded, folder = self.settings, self.loaded, scan.path / ALIGNMENT
        directions = self._directions(folder, made["scan"])
        self._align(scan, loaded.lora, directions, made["scan"])
        facts: dict[str, Any] = {
            "seed": s.seed,
            "held_out": s.eval_data is None,
            "step": s.step,
            "step_rows": len(loaded.step.numbers),
            "step_tokens": loaded.step.tokens,
            "checked_tokens": min(s.checks, loaded.step.tokens),
            "retain_rows": len(loaded.retain.numbers),
            "retain_tokens": loaded.retain.tokens,
            "eval_rows": len(loaded.target.numbers),
            "eval_tokens": loaded.target.tokens,
            **{f"{d.name}_direction": d.facts() for d in directions},
        }
        # The columns are read from here on, so the manifest stands, though not as a finished one.
        write_json(folder / "manifest.json", {"made": None, **facts})
        scan = Scan.open(scan.path)
        facts["check_error"] = self._checked(scan, directions)
        table, facts["step_length"] = self._frontier(scan, objectives)
        write_parquet(scan.path / FORECAST, pa.Table.from_pandas(table, preserve_index=False))
        write_json(folder / "manifest.json", {"made": made, **facts})

    @cached_property
    def loaded(self) -> Loaded:
        return load(self.data, self.settings, self.progress)

    def _directions(self, folder: Path, scan: object) -> list[alignment.Direction]:
        """The gradients of the retained and the held-out rows; `scan`: its identity."""
        directions, loaded = [], self.loaded
        for name, rows in (("retain", loaded.retain), ("eval", loaded.target)):
            lora = loaded.lora and asdict(loaded.lora)
            same = json.loads(json.dumps({"scan": scan, "rows": rows.fingerprint, "lora": lora}))
            of = (loaded.model, loaded.parameters, rows)
            directions.append(alignment.direction(folder, name, *of, same))
        return directions

    def _align(
        self,
        scan: Scan,
        lora: Lora | None,
        directions: Sequence[alignment.Direction],
        identity: object,
    ) -> None:
        """Writes the alignment, unless it stands, and the scan under --reference."""
        folder, s = scan.path / ALIGNMENT, self.settings
        rule = dict.fromkeys(f.name for f in fields(RuleSettings))  # it is of the scan alone
        same = {"scan": identity, **{d.name: d.sha256 for d in directions}}
        if not alignment.is_written(scan, same):
            (folder / alignment.WRITTEN).unlink(missing_ok=True)  # of the parts that go now
            settings = of_scan(s, reference=None, statistics=[], keep=[], **rule)
            alignment.write_alignment(scan, self.data, settings, lora, directions, self.progress)
            write_json(folder / alignment.WRITTEN, same)
        if s.reference is not None:
            settings = of_scan(s, model=s.reference, reference=None, adapter=None, **rule)
            out = folder / REFERENCE
            scan_verb(self.data, out, progress=self.progress, **asdict(settings))

    def _checked(self, scan: Scan, directions: Sequence[alignment.Direction]) -> dict[str, float]:
        s, step = self.settings, self.loaded.step
        of = (self.loaded.model, self.loaded.parameters, step, directions)
        errors = alignment.checked(scan, *of, s.checks, s.seed)
        for name, error in errors.items():
            self.progress.note(
                f"{name}_alignment of {counted_noun(min(s.checks, step.tokens), 'token')} against "
                f"exact backward passes: worst error {number(100 * error, 2)} % of the largest"
            )
        return errors

    def _frontier(
        self, scan: Scan, objectives: Sequence[Objective], length: float | None = None
    ) -> tuple[pandas.DataFrame, float]:
        """The table of the objectives, sft first, and the length of the step."""
        frontier = Frontier(self.loaded, self.settings.seed, self.settings.step)
        gates = {str(o): step_gates(scan, o, self.loaded.step) for o in objectives}
        return frontier.table(objectives, gates, self.progress, length)

    def _add(self, scan: Scan, objectives: Sequence[Objective], length: float) -> None:
        """Rows for the objectives that a finished forecast does not have, after the same step."""
        table = forecast_table(scan.path)
        known = set(table["objective"])
        new = [o for o in objectives if str(o) not in known]
        if not new:
            return
        steps = [objectives[0], *new]  # the rates are over sft's, under the same draws
        self.progress.note(f"this takes {self._cost_of_steps(steps)}")
        added, _ = self._frontier(scan, steps, length)
        table = pandas.concat([table, added[1:]], ignore_index=True)
        write_parquet(scan.path / FORECAST, pa.Table.from_pandas(table, preserve_index=False))
