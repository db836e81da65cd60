"""Entropy, nll and conflict share along the answer."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from numpy.typing import NDArray

from eaft_probe.columns.planes import cached
from eaft_probe.columns.table import Scan
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

# Positions 0 to 15 one by one, then bins a quarter of an octave wide, up to 2^24 tokens.
EDGES = np.unique(
    np.concatenate([np.arange(17), 2 ** np.arange(4.25, 24.1, 0.25)]).astype(np.int64)
)
CURVES = (("entropy", "entropy (nats)"), ("nll", "nll (nats)"), ("conflict", "conflicts (%)"))
READS = ("example", "turn", "position", "entropy", "logprob", "prob")


def positions(*scans: Scan | str | Path) -> Chart:
    """Mean entropy, mean nll and share of conflicts by a token's place in its answer.

    Position 0 is the first trained token of a turn. Bands are the mean ± 2 standard errors,
    tokens taken as independent.
    """
    found = opened(scans)
    frames = [_table(_sums(s)).assign(scan=n) for s, n in zip(found, names(found), strict=True)]
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


def _sums(scan: Scan) -> dict[str, NDArray[Any]]:
    """counts (bins,), sums and squares (bins, 3)."""

    def add_up() -> dict[str, NDArray[Any]]:
        bins, rule = len(EDGES) - 1, scan.rule
        counts, sums, squares = np.zeros(bins), np.zeros((bins, 3)), np.zeros((bins, 3))
        for place, columns in placed(scan):
            index = np.minimum(np.searchsorted(EDGES, place, side="right") - 1, bins - 1)
            counts += np.bincount(index, minlength=bins)
            values = (
                columns["entropy"],
                -columns["logprob"],
                rule(columns).astype(np.float64),
            )
            for i, value in enumerate(values):
                sums[:, i] += np.bincount(index, value, bins)
                squares[:, i] += np.bincount(index, np.float64(value) ** 2, bins)
        return {"counts": counts, "sums": sums, "squares": squares}

    bins = len(EDGES) - 1
    shapes = {"counts": (bins,), "sums": (bins, 3), "squares": (bins, 3)}
    return cached(scan, "positions", repr(scan.rule), add_up, shapes)


def placed(scan: Scan) -> Iterator[tuple[NDArray[np.int64], Mapping[str, NDArray[Any]]]]:
    """(N,) index of each token in its turn's trained span, and the columns.

    Tokens are sorted, so a turn is a run; one that goes on in the next piece is carried over.
    """
    last, began = (-1, -1), 0
    for columns in scan.token_arrays(READS):
        example, turn, position = (columns[c].astype(np.int64) for c in READS[:3])
        if not len(example):
            continue
        new = np.ones(len(example), bool)
        new[1:] = (np.diff(example) != 0) | (np.diff(turn) != 0)
        new[0] = (example[0], turn[0]) != last
        start = np.where(new, position, -1)
        start[0] = position[0] if new[0] else began
        runs = np.maximum.accumulate(np.where(start >= 0, np.arange(len(start)), 0))
        first = start[runs]
        last, began = (int(example[-1]), int(turn[-1])), int(first[-1])
        yield position - first, columns


def _table(made: Mapping[str, NDArray[Any]]) -> pandas.DataFrame:
    full = np.flatnonzero(made["counts"])
    counts = made["counts"][full, None]
    mean = made["sums"][full] / counts
    spread = np.sqrt(np.maximum(made["squares"][full] / counts - mean**2, 0) / counts)
    frame = pandas.DataFrame({"position_from": EDGES[full], "position_to": EDGES[full + 1],
                              "tokens": counts[:, 0].astype(np.int64)})  # fmt: skip
    for i, (name, _) in enumerate(CURVES):
        frame[f"mean_{name}"], frame[f"error_{name}"] = mean[:, i], spread[:, i]
    return frame
