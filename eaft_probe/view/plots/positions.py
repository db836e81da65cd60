"""Entropy, nll and conflict share along the answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from numpy.typing import NDArray

from eaft_probe.analysis.aggregates import counted
from eaft_probe.analysis.positions import EDGES
from eaft_probe.scans.scan import Scan
from eaft_probe.view.plots.chart import (
    COLOURS,
    COLUMN,
    Chart,
    caption,
    legend,
    names,
    new_chart,
    opened,
)

CURVES = (("entropy", "entropy (nats)"), ("nll", "nll (nats)"), ("conflict", "conflicts (%)"))


def positions(*scans: Scan | str | Path) -> Chart:
    """Mean entropy, mean nll and share of conflicts by a token's place in its answer.

    Position 0 is the first trained token of a turn. Bands are the mean ± 2 standard errors,
    tokens taken as independent.
    """
    found = opened(scans)
    tables = [_table(counted(s).along()) for s in found]
    frames = [t.assign(scan=n) for t, n in zip(tables, names(found), strict=True)]
    note = f"{caption(found)} Position 0: a turn's first trained token. Bands: ± 2 standard errors."
    with new_chart(COLUMN, 4.2, pandas.concat(frames, ignore_index=True), note) as chart:
        panels = chart.subplots(3, 1, sharex=True)
        for i, frame in enumerate(frames):
            for axes, (name, label) in zip(panels, CURVES, strict=True):
                _curve(axes, frame, name, COLOURS[i % len(COLOURS)])
                axes.set(xscale="log", ylabel=label)
                axes.set_ylim(bottom=0)
        panels[2].set_xlabel("position in the answer + 1 (tokens)")
        if len(frames) > 1:
            legend(panels[0], names(found))
    return chart


def _curve(axes: Axes, frame: pandas.DataFrame, name: str, colour: str) -> None:
    """Means with their bands; each bin at the middle of its positions, on the logarithmic axis."""
    scale = 100 if name == "conflict" else 1
    x = np.sqrt((frame["position_from"] + 1) * frame["position_to"])
    mean, error = scale * frame[f"mean_{name}"], 2 * scale * frame[f"error_{name}"]
    label = frame["scan"].iloc[0]
    axes.plot(x, mean, color=colour, marker=".", markersize=3, label=label)
    low, high = (mean - error).clip(0), mean + error
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _table(made: Mapping[str, NDArray[Any]]) -> pandas.DataFrame:
    full = np.flatnonzero(made["counts"])
    counts = made["counts"][full, None]
    mean = made["sums"][full] / counts
    spread = np.sqrt(np.maximum(made["squares"][full] / counts - mean**2, 0) / counts)
    frame = pandas.DataFrame(
        {
            "position_from": EDGES[full],
            "position_to": EDGES[full + 1],
            "tokens": counts[:, 0].astype(np.int64),
        }
    )
    for i, (name, _) in enumerate(CURVES):
        frame[f"mean_{name}"], frame[f"error_{name}"] = mean[:, i], spread[:, i]
    return frame
