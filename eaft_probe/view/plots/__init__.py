"""Figures of finished scans: the PLOTS that `eaft-probe plot` draws. No model, no torch.

Each function takes scans (or their folders) and returns a `Chart`, which is a matplotlib figure
with the frame that it is drawn from as `data`. Its keyword arguments are the command's flags.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eaft_probe.errors import BadInput
from eaft_probe.objectives.gates import OBJECTIVES
from eaft_probe.registry import Registry
from eaft_probe.view.plots import chart
from eaft_probe.view.plots.chart import Chart, ending
from eaft_probe.view.plots.compare import compare
from eaft_probe.view.plots.dynamics import dynamics
from eaft_probe.view.plots.gates import gates
from eaft_probe.view.plots.gradients import gradients
from eaft_probe.view.plots.landscape import landscape
from eaft_probe.view.plots.pairs import tokens
from eaft_probe.view.plots.positions import positions
from eaft_probe.view.plots.stability import stability
from eaft_probe.view.plots.topk import topk

PLOTS = Registry[Callable[..., Chart]]("plot")
for _plot in (landscape, gradients, gates, stability, positions, tokens, dynamics, topk, compare):
    PLOTS.add(_plot.__name__, _plot)

TABLES = ("gates", "tokens", "topk")  # whose data is a table that fits a terminal


def require_writable(out: str, data: str | None, overwrite: bool) -> None:
    """Raises `BadInput` for files that could not be written, before the work is done."""
    chart.require_figure(Path(out), overwrite)
    if data is not None:
        ending(data, chart.TABLES, "--data")


def draw(kind: str, folders: Sequence[str], given: Mapping[str, Any]) -> Chart:
    """The figure of that name. Raises `BadInput` for a flag that it does not take."""
    plot = PLOTS[kind]
    for name in folders:
        if name in OBJECTIVES and not Path(name).exists():  # --objective sft eaft
            raise BadInput(f"{name!r} is an objective, not a scan; write --objective sft,{name}")
    parameters = inspect.signature(plot).parameters.values()
    taken = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    for name in given:
        if name not in taken:
            flags = ", ".join("--" + t.replace("_", "-") for t in taken) or "no such flag"
            raise BadInput(f"plot {kind} has no --{name.replace('_', '-')}; it takes {flags}")
    return plot(*folders, **given)


__all__ = ["PLOTS", "TABLES", "Chart", "draw", "require_endings", *PLOTS]
