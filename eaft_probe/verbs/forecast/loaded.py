"""What a forecast loads: the model, its copy, and the rows that it measures."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from eaft_probe.model.loading import CausalLM, load_model
from eaft_probe.progress import Progress
from eaft_probe.settings import ForecastSettings, ScanSettings
from eaft_probe.settings.option import flag
from eaft_probe.verbs.forecast.first_order import held_out
from eaft_probe.verbs.forecast.passes import Rows, read_rows, require_many
from eaft_probe.verbs.scan.perturbation import Lora, movable


@dataclass(frozen=True)
class Loaded:
    """Models and rows. `model` moves along `parameters` and is restored, `base` stays."""

    settings: ForecastSettings
    model: CausalLM
    lora: Lora | None
    parameters: dict[str, torch.nn.Parameter]
    retain: Rows
    target: Rows  # held out
    step: Rows

    @cached_property
    def base(self) -> CausalLM:
        """Loaded when it is asked for: the perturbed scans before have a copy of their own."""
        return _loaded(self.settings)


def load(data: Any, settings: ForecastSettings, progress: Progress) -> Loaded:
    """With a note on each thing left out of retained and held-out data. Raises `BadInput` where
    those are too few rows for an interval, and `DataError`, `ModelError`."""
    progress.note(f"loading {settings.model}")
    model, lora = _loaded(settings), None
    if settings.lora_r is not None:
        target = tuple(settings.lora_target)
        lora = Lora(settings.lora_r, settings.lora_alpha, target, settings.seed)
    parameters = movable(model.whole, lora)
    rows = _rows(data, settings, model, progress)
    return Loaded(settings, model, lora, parameters, *rows)


def _loaded(settings: ForecastSettings) -> CausalLM:
    return load_model(settings.model, **settings.loading(), merge_adapter=True)


def _rows(
    data: Any, settings: ForecastSettings, model: CausalLM, progress: Progress
) -> tuple[Rows, Rows, Rows]:
    """Retained rows, held-out rows, and those of the step."""
    own, most = of_scan(settings), settings.step_tokens

    def measured(name: str, reading: ScanSettings) -> Rows:
        rows = read_rows(getattr(settings, name), reading, model, settings.eval_tokens)
        for sentence in rows.lost:
            progress.note(f"{flag(name)}: {sentence}")
        require_many(rows, flag(name))
        return rows

    def is_held_out(row: int) -> bool:
        return bool(held_out(np.array([row]), settings.seed)[0])

    retain = measured("retain_data", of_any_data(settings))
    if settings.eval_data is not None:
        target = measured("eval_data", of_like_data(settings))
        return retain, target, read_rows(data, own, model, most)
    target = read_rows(data, own, model, settings.eval_tokens, is_held_out)
    require_many(target, "the held-out tenth of the data")
    return retain, target, read_rows(data, own, model, most, lambda row: not is_held_out(row))


# --- how data are read ---


def of_scan(settings: ForecastSettings, **changes: Any) -> ScanSettings:
    """DATA: as the scan of them does."""
    names = {f.name for f in fields(ScanSettings)}
    names -= {"seed"} if settings.sample is None else set()  # it draws no rows
    return replace(ScanSettings(**{n: getattr(settings, n) for n in names}), **changes)


def of_like_data(settings: ForecastSettings) -> ScanSettings:
    """--eval-data: of the same kind, but whole."""
    return of_scan(settings, limit=None, sample=None)


def of_any_data(settings: ForecastSettings) -> ScanSettings:
    """--retain-data: of any kind."""
    any_kind: dict[str, Any] = {
        "format": None,
        "columns": {},
        "config_name": None,
        "split": "train",
        "delimiter": None,
        "encoding": None,
    }
    return of_scan(settings, limit=None, sample=None, **any_kind)
