"""How groups of tokens are learned over a run: the paper's Fig. 4, from the log of `train`."""

from collections.abc import Sequence
from pathlib import Path

import pandas
from matplotlib.axes import Axes

from eaft_probe.errors import ScanError
from eaft_probe.scans.training_log import read_log
from eaft_probe.view.plots.chart import COLOURS, Chart, legend, new_chart, no_axes, shown

MARKERS = "o^sDvP*"
READS = ("run", "step", "objective", "group", "group_nll", "group_count")
PANELS = {
    "high": "high entropy (≥ 2.0 nats)",
    "low": "low entropy (≤ 0.5 nats)",
    "conflict": "conflicts",
}


def dynamics(*runs: str | Path) -> Chart:
    """Mean nll (nats) of three groups of tokens over training steps, one line per run.

    Groups are those of the base model and stay as they are. A run is a folder that `train` wrote
    with its `log.parquet`, or that file. Raises `ScanError`, `MissingColumn`.
    Source: arXiv 2601.02151, Fig. 4.
    """
    frames = [_steps(r) for r in runs]
    if not frames:
        raise ScanError("a figure of dynamics needs at least one run")
    with new_chart(6.8, 2.4, pandas.concat(frames, ignore_index=True), _note(frames)) as chart:
        panels = chart.subplots(1, 3)
        for axes, (group, title) in zip(panels, PANELS.items(), strict=True):
            axes.set_title(title, loc="left")
            axes.set(xlabel="step", ylabel="nll (nats)")
            if not _lines(axes, frames, group):
                no_axes(axes, "no such token")
        most = max(panels, key=lambda axes: len(axes.lines))  # a run may lack a group
        legend(most, [line.get_label() for line in most.lines])
    return chart


def _note(frames: Sequence[pandas.DataFrame]) -> str:
    spans = [f"steps {f['step'].min()} to {f['step'].max()}" for f in frames]
    said = [f"{label} ({span})" for label, span in zip(labels(frames), spans, strict=True)]
    return f"nll of the label, ungated, by its group under the base model. Runs: {', '.join(said)}."


def _lines(axes: Axes, frames: Sequence[pandas.DataFrame], group: str) -> bool:
    """Whether any run has tokens of the group."""
    drawn = False
    for i, (frame, label) in enumerate(zip(frames, labels(frames), strict=True)):
        part = frame[(frame["group"] == group) & (frame["group_count"] > 0)].sort_values("step")
        if len(part):
            axes.plot(
                part["step"],
                part["group_nll"],
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=2.5,
                label=label,
            )
            drawn = True
    return drawn


def labels(frames: Sequence[pandas.DataFrame]) -> list[str]:
    """The runs' objectives, or run names where two have the same."""
    made = [str(f["objective"].iloc[0]) for f in frames]
    if len(set(made)) < len(made):
        made = [f"{f['run'].iloc[0]}: {o}" for f, o in zip(frames, made, strict=True)]
    return [shown(m) for m in made]


def _steps(run: str | Path) -> pandas.DataFrame:
    """The columns of a run's log that are drawn, one row a step and group."""
    frame = read_log(Path(run), READS).to_pandas()
    if frame.empty:
        raise ScanError(f"the log of {run} has no step yet")
    return frame
