"""Entropy, nll and conflict share along the answer."""

from pathlib import Path

import numpy as np
import pandas
from matplotlib.axes import Axes
from numpy.typing import NDArray

from eaft_probe.analysis.aggregates import counted
from eaft_probe.analysis.positions import EDGES
from eaft_probe.scans.scan import Scan
from eaft_probe.view.labels import caption, names
from eaft_probe.view.plots.chart import (
    COLOURS,
    COLUMN,
    Chart,
    by_scan,
    legend,
    new_chart,
    open_scans,
    plot,
)

CURVES = {"entropy": "entropy (nats)", "nll": "nll (nats)", "conflict": "conflicts (%)"}


@plot
def positions(*scans: Scan | str | Path) -> Chart:
    """Mean entropy, mean nll and share of conflicts by a token's place in its answer.

    Position 0 is the first trained token of a turn. Bands are the mean ± 2 standard errors,
    tokens taken as independent.
    """
    opened = open_scans(scans)
    frames = [_table(**counted(s).by_position()) for s in opened]
    note = f"{caption(opened)} Token 1: a turn's first trained one. Bands: ± 2 standard errors."
    with new_chart(COLUMN, 4.2, by_scan(frames, opened), note) as chart:
        panels = chart.subplots(3, 1, sharex=True)
        for axes, (name, label) in zip(panels, CURVES.items(), strict=True):
            for i, frame in enumerate(frames):
                _curve(axes, frame, name, COLOURS[i % len(COLOURS)])
            axes.set(xscale="log", ylabel=label, ylim=(0, None))
        panels[2].set_xlabel("token of the answer, counted from 1")
        panels[2].xaxis.set_major_formatter("{x:,.0f}")
        if len(frames) > 1:
            legend(panels[0], names(opened), loc="lower left", bbox_to_anchor=(0, 1))
    return chart


def _curve(axes: Axes, frame: pandas.DataFrame, name: str, colour: str) -> None:
    """Means with their bands; each bin at the middle of its positions, on the logarithmic axis."""
    scale = 100 if name == "conflict" else 1
    x = np.sqrt((frame["position_from"] + 1) * frame["position_to"])
    mean, error = scale * frame[f"mean_{name}"], 2 * scale * frame[f"error_{name}"]
    axes.plot(x, mean, color=colour, marker=".", markersize=3)
    axes.fill_between(x, (mean - error).clip(0), mean + error, color=colour, alpha=0.2, linewidth=0)


def _table(
    counts: NDArray[np.float64], sums: NDArray[np.float64], squares: NDArray[np.float64]
) -> pandas.DataFrame:
    """The bins with a token, a row each: means and standard errors of CURVES."""
    full = np.flatnonzero(counts)
    count = counts[full, None]
    mean = sums[full] / count
    error = np.sqrt(np.maximum(squares[full] / count - mean**2, 0) / count)
    frame = pandas.DataFrame({"position_from": EDGES[full], "position_to": EDGES[full + 1]})
    frame["tokens"] = counts[full].astype(np.int64)
    for i, name in enumerate(CURVES):
        frame[f"mean_{name}"], frame[f"error_{name}"] = mean[:, i], error[:, i]
    return frame
