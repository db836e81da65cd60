"""Entropy of the top K against full entropy: the paper's Fig. 6 on one's own model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from eaft_probe.columns.statistics import STATISTICS, TOP_K
from eaft_probe.errors import BadInput, MissingColumn
from eaft_probe.scans.scan import Scan
from eaft_probe.view.labels import caption, names
from eaft_probe.view.plots.chart import (
    COLOURS,
    PAGE,
    Chart,
    heat_map,
    new_chart,
    open_scans,
    plot,
    require_sample,
)

Floats = NDArray[np.float64]
BINS, LARGEST = 256, 16.0  # nats, both ways
PAPER_K = 20


@plot
def topk(*scans: Scan | str | Path) -> Chart:
    """Pearson's r of the renormalised top-K entropy with the full one, for each K in the scan.

    Left: K = 20, the gate of EAFT, as a density. Right: r over K. One scan.
    Source: arXiv 2601.02151, Fig. 6. Raises `MissingColumn` if the scan has K = 20 alone.
    """
    if len(scans) != 1:
        raise BadInput(f"plot topk shows one scan, found {len(scans)}")
    (scan,) = open_scans(scans)
    require_sample(scan, "plot topk")
    ks = _available(scan)
    k = PAPER_K if PAPER_K in ks else ks[0]
    sums, plane = _sums(scan, ks, k)
    data = _table(names([scan])[0], ks, sums)
    note = f"{caption([scan], kept=True)} Dashed: both entropies equal. Dotted: ln {k}, the most."
    with new_chart(PAGE, 2.8, data, note, is_table=True) as chart:
        left, right = chart.subplots(1, 2)
        image = _density(left, plane, k, data["pearson_r"][ks.index(k)])
        chart.colorbar(image, ax=left, pad=0.02, label="tokens")
        _correlations(right, data)
    return chart


def _available(scan: Scan) -> list[int]:
    """The K with a column, rising."""
    columns = (c for c in scan.columns if c.startswith("entropy_top") and c in STATISTICS)
    ks = sorted(int(c.removeprefix("entropy_top")) for c in columns)
    if not set(ks) - {PAPER_K}:
        wanted = ",".join(f"entropy_top{k}" for k in TOP_K)
        raise MissingColumn(
            f"{scan.path} has no top-K entropy but K = {PAPER_K}; rescan with --statistics {wanted}"
        )
    return ks


def _sums(scan: Scan, ks: Sequence[int], k: int) -> tuple[Floats, Floats]:
    """(K, 6) n, Σx, Σy, Σx², Σy², Σxy with x the full entropy; (BINS, BINS) the plane of `k`."""
    sums, plane = np.zeros((len(ks), 6)), np.zeros(BINS * BINS)
    for columns in scan.token_arrays(["entropy", *(f"entropy_top{k}" for k in ks)]):
        x = columns["entropy"].astype(np.float64)
        for i, y in enumerate(columns[f"entropy_top{k}"].astype(np.float64) for k in ks):
            sums[i] += (len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y)
        up, across = (
            (columns[name] * (BINS / LARGEST)).astype(int).clip(0, BINS - 1)
            for name in (f"entropy_top{k}", "entropy")
        )
        plane += np.bincount(up * BINS + across, minlength=BINS * BINS)
    return sums, plane.reshape(BINS, BINS)


def _table(scan: str, ks: Sequence[int], sums: Floats) -> pandas.DataFrame:
    """A row for each K; r is NaN where an entropy does not vary."""
    n, x, y, xx, yy, xy = sums.T
    spread = (n * xx - x * x) * (n * yy - y * y)
    return pandas.DataFrame(
        {
            "scan": scan,
            "k": ks,
            "pearson_r": (n * xy - x * y) / np.sqrt(np.where(spread > 0, spread, np.nan)),
            "mean_shortfall": (x - y) / n,  # mean of full minus top-K entropy, nats
            "tokens": n.astype(np.int64),
        }
    )


def _density(axes: Axes, plane: Floats, k: int, r: float) -> AxesImage:
    """Tokens by both entropies, with the diagonal and the ceiling ln K."""
    image = heat_map(
        axes,
        np.where(plane, plane, np.nan),
        (0, LARGEST, 0, LARGEST),
        norm=LogNorm(),
        cmap="viridis_r",
    )
    top = float(np.flatnonzero(plane.sum(0))[-1] + 2) * LARGEST / BINS
    axes.plot([0, top], [0, top], color="#333333", linewidth=0.7, linestyle=(0, (4, 2)))
    axes.axhline(np.log(k), color="#333333", linewidth=0.7, linestyle=":")
    axes.set(
        xlim=(0, top),
        ylim=(0, min(top, np.log(k) * 1.1)),
        xlabel="entropy (nats)",
        ylabel=f"entropy_top{k} (nats)",
    )
    axes.set_title(f"K = {k}" + (f": r = {r:.3f}" if np.isfinite(r) else ""), loc="left")
    return image


def _correlations(axes: Axes, data: pandas.DataFrame) -> None:
    axes.plot(data["k"], data["pearson_r"], color=COLOURS[0], marker="o", markersize=3)
    for k, r in zip(data["k"], data["pearson_r"], strict=True):
        axes.annotate(f"{r:.3f}", (k, r), xytext=(2, -8), textcoords="offset points", fontsize=6)
    least = (
        min(0.9, float(data["pearson_r"].min()) - 0.05) if data["pearson_r"].notna().all() else 0
    )
    axes.set(xscale="log", xlabel="K", ylabel="Pearson's r with entropy", ylim=(least, 1.01))
    axes.set_xticks(data["k"], data["k"])
    axes.minorticks_off()
    axes.margins(x=0.1)  # room for the numbers at both ends
