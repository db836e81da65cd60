"""How the share of flagged tokens changes as either threshold of the conflict rule moves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from eaft_probe.analysis.aggregates import counted
from eaft_probe.analysis.histogram2d import ENTROPY_STEP, PROB_STEP
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.quantities import percent
from eaft_probe.scans.scan import Scan
from eaft_probe.view.labels import caption, names
from eaft_probe.view.plots.chart import (
    Chart,
    by_scan,
    heat_map,
    new_chart,
    open_scans,
    panels_of,
    plot,
    rows_and_columns,
    token_count,
    width_of,
)
from eaft_probe.view.plots.plane import conflict_share

# Thresholds up to 2 nats and 0.5: at least twice those of any rule in use. Steps are the plane's
# cells, at whose edges the shares are exact.
ENTROPY_CELLS, PROB_CELLS = round(2 / ENTROPY_STEP), round(0.5 / PROB_STEP)
ENTROPIES = (np.arange(ENTROPY_CELLS) + 1) * ENTROPY_STEP  # nats
PROBS = (np.arange(PROB_CELLS) + 1) * PROB_STEP
LEVELS = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


@plot
def stability(*scans: Scan | str | Path) -> Chart:
    """The flagged share of tokens for every pair of thresholds; a cross marks the scan's rule.

    A rule by surprise is no such pair, and has no cross. A steep slope at the cross means that
    conclusions depend on the thresholds. Shares are exact.
    """
    opened = open_scans(scans)
    shares = [_flagged(s) for s in opened]
    norm, data = _scale(shares), by_scan([_table(s) for s in shares], opened)
    note = f"{caption(opened)} Cross: the scan's rule. Lines: pairs that flag the same share."
    rows, columns = rows_and_columns(len(opened))
    with new_chart(width_of(columns), 2.6 * rows + 0.4, data, note) as chart:
        panels = panels_of(chart, len(opened), sharey=True)
        for axes, scan, share, name in zip(panels, opened, shares, names(opened), strict=True):
            image = _contours(axes, share, norm)
            if scan.rule.surprise_above is None:
                _mark(axes, scan.rule)
            title = f"{name}\nrule: {percent(conflict_share(scan), digits=2)}"
            axes.set_title(title, loc="left", parse_math=False)
        bar = chart.colorbar(image, ax=panels, pad=0.02, label="share of tokens flagged")
        bar.set_ticks(_within(*image.get_clim()) or [*image.get_clim()])
        bar.ax.yaxis.set_major_formatter(lambda share, _: percent(share, digits=2))
        bar.minorticks_off()
    return chart


def _flagged(scan: Scan) -> NDArray[np.float64]:
    """(ENTROPY_CELLS, PROB_CELLS) share of tokens below the upper edges of each cell."""
    below = counted(scan).plane().counts.cumsum(0).cumsum(1)[:ENTROPY_CELLS, :PROB_CELLS]
    share: NDArray[np.float64] = below / token_count(scan)
    return share


def _table(share: NDArray[np.float64]) -> pandas.DataFrame:
    return pandas.DataFrame(
        {
            "entropy_below": np.repeat(ENTROPIES, PROB_CELLS),
            "prob_below": np.tile(PROBS, ENTROPY_CELLS),
            "flagged_share": share.ravel(),
        }
    )


def _scale(shares: Sequence[NDArray[np.float64]]) -> LogNorm:
    """One logarithmic scale for all shares above 0, if there are any."""
    positive = np.concatenate([s[s > 0] for s in shares])
    return LogNorm(positive.min(), positive.max()) if len(positive) else LogNorm(1e-6, 1)


def _contours(axes: Axes, share: NDArray[np.float64], norm: LogNorm) -> AxesImage:
    extent = (0, PROBS[-1], 0, ENTROPIES[-1])
    image = heat_map(axes, np.where(share, share, np.nan), extent, norm=norm, cmap="viridis_r")
    if levels := _within(share.min(), share.max()):
        lines = axes.contour(PROBS, ENTROPIES, share, levels=levels, colors="black", linewidths=0.5)
        axes.clabel(lines, fmt=lambda share: percent(share, digits=2), fontsize=6)
    axes.set(xlim=extent[:2], ylim=extent[2:], xlabel="prob below", ylabel="entropy below (nats)")
    return image


def _within(least: float, most: float) -> list[float]:
    return [v for v in LEVELS if least < v < most]


def _mark(axes: Axes, rule: ConflictRule) -> None:
    """A cross at the rule's thresholds, or at the edge if they lie beyond the map."""
    axes.plot(
        np.clip(rule.prob_below, 0, PROBS[-1]),
        np.clip(rule.entropy_below, 0, ENTROPIES[-1]),
        "P",
        color="white",
        markersize=8,
        markeredgecolor="#8a3c00",
        markeredgewidth=1.2,
        clip_on=False,
    )
