"""`forecast`: what each objective would teach and cost this model, before training.

scan → gradients of the retained and the held-out rows → two perturbed scans each, the alignment of
every token → a check by exact backward passes → one step along each objective's gradient.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa

from eaft_probe.analysis.exact_gradients import scan_identity
from eaft_probe.data.opening import open_data
from eaft_probe.errors import BadInput
from eaft_probe.model.loading import CausalLM, load_model, resolve_device
from eaft_probe.objectives.gates import OBJECTIVES, chosen_objectives
from eaft_probe.objectives.objective import Objective
from eaft_probe.progress import Progress, Silent
from eaft_probe.quantities import counted_noun, number
from eaft_probe.scans.alignment import ALIGNMENT, FORECAST, alignment_manifest
from eaft_probe.scans.part_writer import write_parquet
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import ForecastSettings, RuleSettings, ScanSettings, make_settings
from eaft_probe.settings.option import flag
from eaft_probe.storage.atomic import write_json
from eaft_probe.storage.remote import Store, without_paths
from eaft_probe.verbs.forecast import alignment
from eaft_probe.verbs.forecast.first_order import REFERENCE, by_objective, held_out
from eaft_probe.verbs.forecast.frontier import Frontier
from eaft_probe.verbs.forecast.passes import Rows, read_rows, require_many
from eaft_probe.verbs.forecast.step_gates import step_gates
from eaft_probe.verbs.scan.perturbation import Lora, movable
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
        made, error = self.made, 100 * max(self.made["check_error"].values())
        return (
            f"a {made['step']} step of length {number(made['step_length'])} on "
            f"{counted_noun(made['step_tokens'], 'token')}; retained: "
            f"{counted_noun(made['retain_rows'], 'row')}, held out: "
            f"{counted_noun(made['eval_rows'], 'row')}; alignment checked on "
            f"{counted_noun(made['checked_tokens'], 'token')}, worst error {number(error, 2)} % of "
            f"the largest"
        )

    @classmethod
    def open(cls, folder: str | Path) -> "Forecast":
        """Raises `BadInput` where `folder` is no finished forecast."""
        from eaft_probe.scans.alignment import forecast_table, unfinished

        scan = Scan.open(folder)
        made = alignment_manifest(scan.path)
        if not made or made["made"] is None:
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
        objectives = self._objectives()
        if not (self.out / FORECAST).exists():
            self.progress.note(self._cost(len(objectives)))
        config = self._config(objectives)
        self._require_same(config)
        scan = self._scanned()
        made = {"scan": scan_identity(scan), **config}
        stored = alignment_manifest(scan.path)
        if stored and stored["made"] == made and (scan.path / FORECAST).exists():
            return Forecast.open(scan.path)
        for file in (FORECAST, f"{ALIGNMENT}/manifest.json"):
            (scan.path / file).unlink(missing_ok=True)
        self._forecast(scan, objectives, made)
        return Forecast.open(scan.path)

    def _objectives(self) -> list[Objective]:
        names = [*dict.fromkeys(["sft", *(self.settings.objective or DEFAULT)])]
        chosen = chosen_objectives(names, self.settings.set)
        if self.settings.reference is None and "rho" in names:
            raise BadInput("objective 'rho' compares with a reference model; give --reference M")
        return chosen

    def _cost(self, objectives: int) -> str:
        s, plain = self.settings, self.settings.step == "plain"
        return (
            f"this takes a scan of the data and four more of the same cost, gradients of "
            f"{s.eval_tokens:,} tokens each of retained and held-out data, {s.checks} backward "
            f"passes to check, and for each of {objectives} objectives one backward pass of "
            f"{s.step_tokens:,} tokens and two measurements of the retained and held-out data; "
            f"memory: the weights, one copy and {'one gradient' if plain else 'three gradients'}"
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
                f"({', '.join(map(flag, other))}); choose another --out, or --overwrite"
            )

    # --- the scan ---

    def _as_scan(self, **changes: Any) -> ScanSettings:
        names = {f.name for f in fields(ScanSettings)}
        names -= {"seed"} if self.settings.sample is None else set()  # it draws no rows
        return replace(ScanSettings(**{n: getattr(self.settings, n) for n in names}), **changes)

    def _scanned(self) -> Scan:
        given, taken = self.settings.scan, not (self.out / "manifest.json").exists()
        if given is not None:
            self._take(Scan.open(given, verify=taken))
        try:
            return scan_verb(self.data, self.out, progress=self.progress, **asdict(self._as_scan()))
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

    def _config(self, objectives: Sequence[Objective]) -> dict[str, Any]:
        """What a rerun must repeat, besides the scan. Raises `BadInput` for data that cannot be
        opened, before the long work."""
        free = {"overwrite", "workers", "threads", "engine", "address", "scan", "set"}
        config = {k: v for k, v in without_paths(asdict(self.settings)).items() if k not in free}
        config["objective"] = [str(o) for o in objectives]
        for name in ("retain_data", "eval_data"):
            if config[name] is not None:
                held_out = getattr(self.settings, name)
                reading = self._other() if name == "retain_data" else self._like_data()
                source = open_data(held_out, reading, self.progress.note)
                config[name] = source.fingerprint()
        plain: dict[str, Any] = json.loads(json.dumps(config))
        return plain

    def _like_data(self) -> ScanSettings:
        return self._as_scan(limit=None, sample=None)

    def _other(self) -> ScanSettings:
        """How data of any kind are read."""
        any_kind: dict[str, Any] = {
            "format": None,
            "columns": {},
            "config_name": None,
            "split": "train",
            "delimiter": None,
            "encoding": None,
        }
        return self._as_scan(limit=None, sample=None, **any_kind)

    # --- gradients, alignment, steps ---

    def _forecast(self, scan: Scan, objectives: Sequence[Objective], made: dict[str, Any]) -> None:
        s, folder = self.settings, scan.path / ALIGNMENT
        self.progress.note(f"loading {s.model} twice")
        model, base = (self._load() for _ in range(2))
        lora = None
        if s.lora_r is not None:
            lora = Lora(s.lora_r, s.lora_alpha, tuple(s.lora_target), s.seed)
        parameters = movable(model.whole, lora)
        retain, target, step = self._rows(model)
        require_many(retain, "--retain-data")
        require_many(target, "--eval-data" if s.eval_data else "the held-out tenth of the data")
        directions = []
        for name, rows in (("retain", retain), ("eval", target)):
            same = {"scan": made["scan"], "rows": rows.fingerprint, "lora": lora and asdict(lora)}
            same = json.loads(json.dumps(same))
            directions.append(alignment.direction(folder, name, model, parameters, rows, same))
        rule = dict.fromkeys(f.name for f in fields(RuleSettings))  # it is of the scan alone
        settings = self._as_scan(reference=None, statistics=[], keep=[], **rule)
        same = {"scan": made["scan"], **{d.name: d.sha256 for d in directions}}
        if not alignment.is_written(scan, same):
            (folder / alignment.WRITTEN).unlink(missing_ok=True)  # of the parts that go now
            alignment.write_alignment(scan, self.data, settings, lora, directions, self.progress)
            write_json(folder / alignment.WRITTEN, same)
        if s.reference is not None:
            scan_verb(
                self.data,
                folder / REFERENCE,
                progress=self.progress,
                **asdict(self._as_scan(model=s.reference, reference=None, adapter=None, **rule)),
            )
        facts: dict[str, Any] = {
            "seed": s.seed,
            "held_out": s.eval_data is None,
            "step": s.step,
            "step_rows": len(step.numbers),
            "step_tokens": step.tokens,
            "checked_tokens": min(s.checks, step.tokens),
            "retain_rows": len(retain.numbers),
            "retain_tokens": retain.tokens,
            "eval_rows": len(target.numbers),
            "eval_tokens": target.tokens,
            "retain_direction": directions[0].facts(),
            "eval_direction": directions[1].facts(),
        }
        # The columns are read from here on, so the manifest stands, though not as a finished one.
        write_json(folder / "manifest.json", {"made": None, **facts})
        scan = Scan.open(scan.path)
        checks = alignment.checked(scan, model, parameters, step, directions, s.checks, s.seed)
        for name, error in checks.items():
            self.progress.note(
                f"{name}_alignment of {counted_noun(facts['checked_tokens'], 'token')} against "
                f"exact backward passes: worst error {number(100 * error, 2)} % of the largest"
            )
        frontier = Frontier(model, parameters, base, step, target, retain, s.seed, s.step)
        gates = {str(o): step_gates(scan, o, step) for o in objectives}
        table, length = frontier.table(objectives, gates, self.progress)
        facts |= {"check_error": checks, "step_length": length}
        write_parquet(scan.path / FORECAST, pa.Table.from_pandas(table, preserve_index=False))
        write_json(folder / "manifest.json", {"made": made, **facts})

    def _load(self) -> CausalLM:
        return load_model(self.settings.model, **self.settings.loading(), merge_adapter=True)

    def _rows(self, model: CausalLM) -> tuple[Rows, Rows, Rows]:
        """Retained rows, held-out rows, and those of the step."""
        s, own = self.settings, self._as_scan()
        retain = self._held_out("retain_data", self._other(), model)

        def is_held_out(row: int) -> bool:
            return bool(held_out(np.array([row]), s.seed)[0])

        if s.eval_data is not None:
            target = self._held_out("eval_data", self._like_data(), model)
            return retain, target, read_rows(self.data, own, model, s.step_tokens)
        target = read_rows(self.data, own, model, s.eval_tokens, is_held_out)
        step = read_rows(self.data, own, model, s.step_tokens, lambda row: not is_held_out(row))
        return retain, target, step

    def _held_out(self, name: str, reading: ScanSettings, model: CausalLM) -> Rows:
        """The rows of that data set, with a note on each thing left out of it."""
        rows = read_rows(getattr(self.settings, name), reading, model, self.settings.eval_tokens)
        for sentence in rows.lost:
            self.progress.note(f"{flag(name)}: {sentence}")
        return rows
