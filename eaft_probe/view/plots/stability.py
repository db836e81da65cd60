"""How the share of flagged tokens moves as either threshold of the conflict rule moves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

from eaft_probe.analysis.aggregates import counted
from eaft_probe.analysis.histogram2d import ENTROPY_STEP, PROB_STEP
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.scans.scan import Scan
from eaft_probe.view.plots.chart import (
    COLUMN,
    Chart,
    caption,
    names,
    new_chart,
    opened,
    percent,
    tokens,
)
from eaft_probe.view.plots.landscape import conflict_share

# Thresholds up to 2 nats and 0.5: twice and more what any rule in use has. Steps are the plane's
# cells, at whose edges the shares are exact.
ENTROPY_CELLS, PROB_CELLS = round(2 / ENTROPY_STEP), round(0.5 / PROB_STEP)
LEVELS = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def stability(*scans: Scan | str | Path) -> Chart:
    """The flagged share of tokens for every pair of thresholds; a cross marks the scan's rule.

    A steep slope at the cross means that conclusions hang on the thresholds. Shares are exact.
    """
    found = opened(scans)
    shares = [flagged(s) for s in found]
    tables = [_table(s).assign(scan=n) for s, n in zip(shares, names(found), strict=True)]
    norm = _scale(shares)
    with new_chart(COLUMN * len(found), 3.0, pandas.concat(tables), caption(found)) as chart:
        panels = chart.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for axes, scan, share, name in zip(panels, found, shares, names(found), strict=True):
            image = _heat_map(axes, share, norm)
            _mark(axes, scan.rule)
            title = f"{name}\nrule: {percent(conflict_share(scan))}"
            axes.set_title(title, loc="left", parse_math=False)
        chart.colorbar(image, ax=list(panels), pad=0.02).set_label("share of tokens flagged")
    return chart


def _scale(shares: Sequence[NDArray[np.float64]]) -> LogNorm:
    """One logarithmic scale over all shares above 0, where there are any."""
    positive = np.concatenate([s[s > 0] for s in shares])
    return LogNorm(positive.min(), positive.max()) if len(positive) else LogNorm(1e-6, 1)


def _heat_map(axes: Axes, share: NDArray[np.float64], norm: LogNorm) -> Any:
    extent = (0, PROB_CELLS * PROB_STEP, 0, ENTROPY_CELLS * ENTROPY_STEP)
    image = axes.imshow(
        np.ma.masked_equal(share, 0),
        origin="lower",
        extent=extent,
        aspect="auto",
        norm=norm,
        cmap="viridis_r",
        interpolation="none",
    )
    levels = [v for v in LEVELS if share.min() < v < share.max()]
    if levels:
        across, up = (np.arange(n) + 1 for n in (PROB_CELLS, ENTROPY_CELLS))
        lines = axes.contour(
            across * PROB_STEP,
            up * ENTROPY_STEP,
            share,
            levels=levels,
            colors="black",
            linewidths=0.5,
        )
        axes.clabel(lines, fmt=percent, fontsize=6)
    axes.set(xlim=extent[:2], ylim=extent[2:], xlabel="prob below", ylabel="entropy below (nats)")
    return image


def _mark(axes: Axes, rule: ConflictRule) -> None:
    """A cross at the rule's thresholds, held at the edge where they lie beyond the map."""
    x = min(max(rule.prob_below, 0), PROB_CELLS * PROB_STEP)
    y = min(max(rule.entropy_below, 0), ENTROPY_CELLS * ENTROPY_STEP)
    axes.plot(
        x,
        y,
        "P",
        color="white",
        markersize=8,
        markeredgecolor="#8a3c00",
        markeredgewidth=1.2,
        clip_on=False,
    )


def flagged(scan: Scan) -> NDArray[np.float64]:
    """(ENTROPY_CELLS, PROB_CELLS) share of tokens below the upper edges of each cell."""
    below = counted(scan).plane().counts.cumsum(0).cumsum(1)[:ENTROPY_CELLS, :PROB_CELLS]
    share: NDArray[np.float64] = below / tokens(scan)
    return share


def _table(share: NDArray[np.float64]) -> pandas.DataFrame:
    up, across = np.indices(share.shape)
    return pandas.DataFrame(
        {
            "entropy_below": ((up + 1) * ENTROPY_STEP).ravel(),
            "prob_below": ((across + 1) * PROB_STEP).ravel(),
            "flagged_share": share.ravel(),
        }
    )
