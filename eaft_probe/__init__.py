"""See which tokens of a fine-tuning data set fight what the model already believes.

>>> from eaft_probe import scan
>>> scan("data.jsonl", "eaft-scan", model="smollm2").tokens(["token", "prob"])  # doctest: +SKIP
"""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eaft_probe.objectives.compute_loss_func import GatedLoss
    from eaft_probe.objectives.trainer import GatedLossMixin
    from eaft_probe.scans.scan import Scan
    from eaft_probe.verbs.compare import compare
    from eaft_probe.verbs.export.export import export
    from eaft_probe.verbs.forecast.forecast import forecast
    from eaft_probe.verbs.rollout.rollout import rollout
    from eaft_probe.verbs.scan.scan import scan
    from eaft_probe.verbs.train.train import train
    from eaft_probe.view import plots

__all__ = [
    "GatedLoss",
    "GatedLossMixin",
    "Scan",
    "compare",
    "export",
    "forecast",
    "plots",
    "rollout",
    "scan",
    "train",
]
_HOMES = {
    "scan": "eaft_probe.verbs.scan.scan",
    "Scan": "eaft_probe.scans.scan",
    "rollout": "eaft_probe.verbs.rollout.rollout",
    "train": "eaft_probe.verbs.train.train",
    "forecast": "eaft_probe.verbs.forecast.forecast",
    "compare": "eaft_probe.verbs.compare",
    "export": "eaft_probe.verbs.export.export",
    "GatedLoss": "eaft_probe.objectives.compute_loss_func",
    "GatedLossMixin": "eaft_probe.objectives.trainer",
    "plots": None,
}


# Whoever imports it first, it speaks of kernels that are not used here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """Loads on first use: reading a finished scan needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'eaft_probe' has no attribute {name!r}")
    from importlib import import_module

    home = _HOMES[name]
    value = getattr(import_module(home), name) if home else import_module(f"eaft_probe.view.{name}")
    globals()[name] = value  # a submodule of the same name must not take its place
    return value
