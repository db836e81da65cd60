"""Where in the answer conflicts stand, and what the model wants instead."""

from pathlib import Path

import numpy as np
import pandas
from matplotlib.axes import Axes
from numpy.typing import NDArray

from eaft_probe.analysis.aggregates import counted
from eaft_probe.analysis.positions import EDGES
from eaft_probe.scans.scan import Scan
from eaft_probe.view.labels import caption, names, shown
from eaft_probe.view.plots.chart import (
    COLOURS,
    COLUMN,
    CONFLICT,
    Chart,
    by_scan,
    legend,
    new_chart,
    no_axes,
    open_scans,
    panels_of,
    plot,
    rows_and_columns,
    width_of,
)

MOST = 20
PAIR_COLUMNS = ["token", "top1", "conflicts", "mean_prob", "mean_top1_prob"]
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


@plot
def tokens(*scans: Scan | str | Path) -> Chart:
    """How often the model was sure of another token than the label: the 20 commonest pairs."""
    opened = open_scans(scans)
    frames = [pandas.DataFrame(counted(s).pairs(MOST), columns=PAIR_COLUMNS) for s in opened]
    rows, columns = rows_and_columns(len(opened))
    data, height = by_scan(frames, opened), rows * (0.8 + 0.16 * max(3, *map(len, frames))) + 0.2
    note = f"{caption(opened)} Belief: what the model would say."
    with new_chart(width_of(columns), height, data, note, is_table=True) as chart:
        panels = panels_of(chart, len(opened))
        for axes, frame, name in zip(panels, frames, names(opened), strict=True):
            axes.set_title(name, loc="left", parse_math=False)
            if frame.empty:
                no_axes(axes, "no token is flagged under this rule")
                continue
            most = 22 if columns < 3 else 11  # characters of a token
            labels = [
                _label(a, b, most) for a, b in zip(frame["token"], frame["top1"], strict=True)
            ]
            bars = axes.barh(range(len(frame)), frame["conflicts"], color=CONFLICT, height=0.7)
            axes.bar_label(bars, padding=2, fontsize=6)
            axes.set_yticks(range(len(frame)), labels, fontsize=6, parse_math=False)
            axes.invert_yaxis()
            axes.set(
                xlabel="conflicts (label → belief)",
                xlim=(0, frame["conflicts"].max() * 1.12),
            )
    return chart


def _label(token: str, top1: str, most: int) -> str:
    texts = [shown(repr(t)) for t in (token, top1)]
    return " → ".join(t if len(t) <= most else t[: most - 1] + "…" for t in texts)
