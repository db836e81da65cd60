"""The types of the public functions, made from the settings, which are defined once.

python tests/stub.py > eaft_probe/__init__.pyi
"""

import inspect
from dataclasses import fields
from typing import Any, get_type_hints

from eaft_probe.settings import (
    CompareSettings,
    ExportSettings,
    ForecastSettings,
    RolloutSettings,
    ScanSettings,
    TrainSettings,
)
from eaft_probe.verbs.compare import compare
from eaft_probe.verbs.export.export import export
from eaft_probe.verbs.forecast.forecast import forecast
from eaft_probe.verbs.rollout.rollout import rollout
from eaft_probe.verbs.scan.scan import scan
from eaft_probe.verbs.train.train import train

HEAD = """\
# Written by `python tests/stub.py > eaft_probe/__init__.pyi`; a test compares the two.
import pathlib
from typing import Any, Literal, Optional, Union

from torch.nn import Module
from transformers import PreTrainedTokenizerBase

from eaft_probe.objectives.compute_loss_func import GatedLoss as GatedLoss
from eaft_probe.objectives.trainer import GatedLossMixin as GatedLossMixin
from eaft_probe.progress import Progress
from eaft_probe.scans.scan import Scan as Scan
from eaft_probe.verbs.compare import Comparison
from eaft_probe.verbs.export.export import Export
from eaft_probe.verbs.forecast.forecast import Forecast
from eaft_probe.verbs.rollout.rollout import Rollout
from eaft_probe.verbs.train.run_folder import Run
from eaft_probe.view import plots as plots
"""
SETTINGS = {
    scan: ScanSettings,
    train: TrainSettings,
    rollout: RolloutSettings,
    compare: CompareSettings,
    export: ExportSettings,
    forecast: ForecastSettings,
}


def stub() -> str:
    return "\n".join([HEAD, *(_function(f, kind) for f, kind in SETTINGS.items())])


def _function(function: Any, kind: type[Any]) -> str:
    hints = get_type_hints(function)
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    given = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind in plain and p.name in hints
    ]
    first = [
        _parameter(p.name, hints[p.name], p.default is p.empty)
        for p in given
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    named = [_parameter(p.name, hints[p.name]) for p in given if p.kind is p.KEYWORD_ONLY]
    types, own = get_type_hints(kind), {p.name for p in given}
    named += [_parameter(f.name, types[f.name]) for f in fields(kind) if f.name not in own]
    lines = ",\n    ".join([*first, "*", *named])
    return f"def {function.__name__}(\n    {lines},\n) -> {_type(hints['return'])}: ...\n"


def _parameter(name: str, kind: Any, required: bool = False) -> str:
    return f"{name}: {_type(kind)}" + ("" if required else " = ...")


def _type(kind: Any) -> str:
    text = inspect.formatannotation(kind).replace("typing.", "")
    own = ("Comparison", "Export", "Forecast", "Rollout", "Run")
    names = ("Progress", "Scan", *own, "Module")
    for name in (*names, "PreTrainedTokenizerBase"):
        text = text.replace(_home(name, text), name)
    return text


def _home(name: str, text: str) -> str:
    """The name with its module, as an annotation says it."""
    return next((w for w in text.replace("|", " ").split() if w.endswith(f".{name}")), name)


if __name__ == "__main__":
    print(stub(), end="")
