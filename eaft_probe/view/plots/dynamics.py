"""How groups of tokens are learned over a run: the paper's Fig. 4, from the log of `train`."""

from collections.abc import Sequence
from pathlib import Path

import pandas
from matplotlib.axes import Axes

from eaft_probe.errors import ScanError
from eaft_probe.scans.training_log import read_log
from eaft_probe.view.labels import distinct
from eaft_probe.view.plots.chart import COLOURS, PAGE, Chart, legend, new_chart, no_axes, plot

MARKERS = "o^sDvP*"
READS = ("run", "step", "objective", "group", "group_nll", "group_count")
PANELS = {
    "high": "high entropy (≥ 2.0 nats)",
    "low": "low entropy (≤ 0.5 nats)",
    "conflict": "conflicts",
}


@plot
def dynamics(*runs: str | Path) -> Chart:
    """Mean nll (nats) of three groups of tokens over training steps, one line per run.

    Groups are those of the base model and stay as they are. A run is a folder that `train` wrote
    with its `log.parquet`, or that file. Raises `ScanError`, `MissingColumn`.
    Source: arXiv 2601.02151, Fig. 4.
    """
    logs = [_log(r) for r in runs]
    if not logs:
        raise ScanError("a figure of dynamics needs at least one run")
    objectives = [str(log["objective"].iloc[0]) for log in logs]
    by_run = [f"{log['run'].iloc[0]}: {o}" for log, o in zip(logs, objectives, strict=True)]
    names = distinct(objectives, by_run)
    spans = [
        f"{name} (steps {log['step'].min()} to {log['step'].max()})"
        for name, log in zip(names, logs, strict=True)
    ]
    note = (
        f"nll of the label, ungated, by its group under the base model. Runs: {', '.join(spans)}."
    )
    with new_chart(PAGE, 2.4, pandas.concat(logs, ignore_index=True), note) as chart:
        panels = chart.subplots(1, 3)
        for axes, (group, title) in zip(panels, PANELS.items(), strict=True):
            axes.set_title(title, loc="left")
            axes.set(xlabel="step", ylabel="nll (nats)")
            _lines(axes, logs, names, group)
            if not axes.lines:
                no_axes(axes, "no such token")
        most = max(panels, key=lambda axes: len(axes.lines))  # a run may lack a group
        legend(most, [line.get_label() for line in most.lines])
    return chart


def _log(run: str | Path) -> pandas.DataFrame:
    """The columns of a run's log that are drawn, one row for each step and group."""
    log = read_log(Path(run), READS).to_pandas()
    if log.empty:
        raise ScanError(f"the log of {run} has no step yet")
    return log


def _lines(axes: Axes, logs: Sequence[pandas.DataFrame], names: Sequence[str], group: str) -> None:
    """A line for each run that has tokens of the group."""
    for i, (log, name) in enumerate(zip(logs, names, strict=True)):
        rows = log[(log["group"] == group) & (log["group_count"] > 0)].sort_values("step")
        if len(rows):
            axes.plot(
                rows["step"],
                rows["group_nll"],
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=2.5,
                label=name,
            )
