"""Figures of finished scans: the PLOTS that `eaft-probe plot` draws. No model, no torch.

A plot is a function with `@plot` in a file here. It takes scans (or their folders) and returns a
`Chart`, which is a matplotlib figure with the frame that it is drawn from as `data`. Its keyword
arguments are the command's flags, which `PlotSettings` describes.
"""

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from eaft_probe.errors import BadInput
from eaft_probe.objectives.gates import OBJECTIVES
from eaft_probe.settings.option import flag
from eaft_probe.storage.remote import Store, local
from eaft_probe.view.plots.chart import PLOTS, TABLES, Chart, ending, plot, require_figure

if TYPE_CHECKING:  # below, any file here
    from eaft_probe.view.plots.compare import compare
    from eaft_probe.view.plots.conflicts import positions, tokens
    from eaft_probe.view.plots.dynamics import dynamics
    from eaft_probe.view.plots.forecast import forecast
    from eaft_probe.view.plots.gates import gates
    from eaft_probe.view.plots.gradients import gradients
    from eaft_probe.view.plots.landscape import landscape
    from eaft_probe.view.plots.stability import stability
    from eaft_probe.view.plots.topk import topk

WORDS = ("title", "caption")  # settings of every figure

for _file in iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
globals().update(PLOTS)  # in place of the modules of the same names


def require_writable(out: str, data: str | None, overwrite: bool) -> None:
    """Raises `BadInput` for files that could not be written, before the work is done."""
    require_figure(Path(out), overwrite)
    if data is not None:
        ending(data, TABLES, "--data")


def default_out(kind: str, place: str) -> str:
    """KIND.png beside a scan or run, whose own folder stays as it was: scan-landscape.png. That of
    a store comes into this folder."""
    store = Store.of(place)
    path = Path(Path(store.shown).name) if store else local(place)
    if path.is_file():
        path = path.parent  # a run's log
    if path.name in ("", ".."):
        path = path.resolve()
    return str(path.with_name(f"{path.name}-{kind}.png"))


def draw(kind: str, folders: Sequence[str], settings: Mapping[str, object]) -> Chart:
    """The figure of that name. Raises `BadInput` for a flag that it does not take."""
    draw_figure = PLOTS[kind]
    words: dict[str, Any] = {k: v for k, v in settings.items() if k in WORDS}
    settings = {k: v for k, v in settings.items() if k not in WORDS}
    for name in folders:
        if name in OBJECTIVES and not Path(name).exists():  # --objective sft eaft
            raise BadInput(f"{name!r} is an objective, not a scan; write --objective sft,{name}")
    parameters = inspect.signature(draw_figure).parameters.values()
    known = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    for name in settings:
        if name not in known:
            flags = ", ".join(map(flag, known)) or "no such flag"
            raise BadInput(f"plot {kind} has no {flag(name)}; it takes {flags}")
    chart = draw_figure(*folders, **settings)
    return chart.labelled(**words) if words else chart


__all__ = [
    "PLOTS",
    "Chart",
    "compare",
    "draw",
    "dynamics",
    "forecast",
    "gates",
    "gradients",
    "landscape",
    "plot",
    "positions",
    "require_writable",
    "stability",
    "tokens",
    "topk",
]
