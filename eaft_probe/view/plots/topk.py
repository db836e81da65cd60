"""Entropy of the top K against full entropy: the paper's Fig. 6 on one's own model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

from eaft_probe.columns.statistics import STATISTICS, TOP_K
from eaft_probe.errors import BadInput, MissingColumn
from eaft_probe.scans.scan import Scan
from eaft_probe.view.plots.chart import (
    COLOURS,
    Chart,
    caption,
    names,
    new_chart,
    opened,
    require_sample,
)

BINS, LARGEST = 256, 16.0  # nats, both ways
PAPER_K = 20


def topk(*scans: Scan | str | Path) -> Chart:
    """Pearson's r of the renormalised top-K entropy with the full one, for each K in the scan.

    Left: K = 20, the gate of EAFT, as a density. Right: r over K. One scan.
    Source: arXiv 2601.02151, Fig. 6. Raises `MissingColumn` where the scan has K = 20 alone.
    """
    if len(scans) != 1:
        raise BadInput(f"plot topk shows one scan, found {len(scans)}")
    (scan,) = opened(scans)
    require_sample(scan, "plot topk")
    found = _available(scan)
    made = _sums(scan, found)
    data = _table(scan, found, made["sums"])
    with new_chart(6.8, 2.8, data, caption([scan], kept=True)) as chart:
        left, right = chart.subplots(1, 2)
        image = _density(left, made["plane"], _pictured(found), data)
        chart.colorbar(image, ax=left, pad=0.02).set_label("tokens")
        _correlations(right, data)
    return chart


def _available(scan: Scan) -> list[int]:
    """The K with a column, rising."""
    found = [
        c.removeprefix("entropy_top")
        for c in scan.columns
        if c.startswith("entropy_top") and c in STATISTICS
    ]
    if not set(found) - {str(PAPER_K)}:
        wanted = ",".join(f"entropy_top{k}" for k in TOP_K)
        raise MissingColumn(
            f"{scan.path} has no top-K entropy but K = {PAPER_K}; rescan with --statistics {wanted}"
        )
    return sorted(map(int, found))


def _pictured(found: Sequence[int]) -> int:
    return PAPER_K if PAPER_K in found else found[0]


def _table(scan: Scan, found: Sequence[int], sums: NDArray[np.float64]) -> pandas.DataFrame:
    return pandas.DataFrame(
        {
            "scan": names([scan])[0],
            "k": found,
            "pearson_r": [_pearson(s) for s in sums],
            "mean_shortfall": [_shortfall(s) for s in sums],
            "tokens": sums[:, 0].astype(np.int64),
        }
    )


def _density(axes: Axes, plane: NDArray[np.float64], k: int, data: pandas.DataFrame) -> Any:
    """Tokens by both entropies, with the diagonal and the ceiling ln K."""
    image = axes.imshow(
        np.ma.masked_equal(plane, 0),
        origin="lower",
        extent=(0, LARGEST, 0, LARGEST),
        norm=LogNorm(),
        cmap="viridis_r",
        aspect="auto",
        interpolation="none",
    )
    top = float(np.flatnonzero(plane.sum(0))[-1] + 2) * LARGEST / BINS
    axes.plot([0, top], [0, top], color="#333333", linewidth=0.7, linestyle=(0, (4, 2)))
    axes.axhline(np.log(k), color="#333333", linewidth=0.7, linestyle=":")
    axes.set(xlim=(0, top), ylim=(0, min(top, np.log(k) * 1.1)))
    axes.set(xlabel="entropy (nats)", ylabel=f"entropy_top{k} (nats)")
    axes.set_title(f"K = {k}: r = {float(data.set_index('k')['pearson_r'][k]):.4f}", loc="left")
    return image


def _correlations(axes: Axes, data: pandas.DataFrame) -> None:
    axes.plot(data["k"], data["pearson_r"], color=COLOURS[0], marker="o", markersize=3)
    for k, r in zip(data["k"], data["pearson_r"], strict=True):
        axes.annotate(
            f"{r:.3f}", (k, r), xytext=(0, -9), textcoords="offset points", fontsize=6, ha="center"
        )
    least = (
        min(0.9, float(data["pearson_r"].min()) - 0.05) if data["pearson_r"].notna().all() else 0
    )
    axes.set(xscale="log", xlabel="K", ylabel="Pearson's r with entropy", ylim=(least, 1.01))


def _sums(scan: Scan, found: list[int]) -> dict[str, NDArray[np.float64]]:
    """For each K: n, Σx, Σy, Σx², Σy², Σxy with x the full entropy; the plane of the K shown."""
    sums, plane = np.zeros((len(found), 6)), np.zeros((BINS, BINS))
    shown = _pictured(found)
    for columns in scan.token_arrays(["entropy", *(f"entropy_top{k}" for k in found)]):
        x = columns["entropy"].astype(np.float64)
        for i, k in enumerate(found):
            y = columns[f"entropy_top{k}"].astype(np.float64)
            sums[i] += (len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y)
        both = [
            (columns[c] * (BINS / LARGEST)).astype(int).clip(0, BINS - 1)
            for c in (f"entropy_top{shown}", "entropy")
        ]
        plane += np.bincount(both[0] * BINS + both[1], minlength=BINS * BINS).reshape(BINS, BINS)
    return {"sums": sums, "plane": plane}


def _pearson(sums: NDArray[np.float64]) -> float:
    n, x, y, xx, yy, xy = sums
    spread = (n * xx - x * x) * (n * yy - y * y)
    return float((n * xy - x * y) / np.sqrt(spread)) if spread > 0 else float("nan")


def _shortfall(sums: NDArray[np.float64]) -> float:
    """Mean of full minus top-K entropy, nats."""
    return float((sums[1] - sums[2]) / sums[0])
