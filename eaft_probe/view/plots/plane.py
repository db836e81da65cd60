"""The entropy–probability plane as axes: its cells, the bounds on it and the conflict region."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from eaft_probe.analysis.aggregates import counted
from eaft_probe.analysis.histogram2d import (
    ENTROPY_BINS,
    ENTROPY_STEP,
    PROB_BINS,
    PROB_STEP,
    cell,
    greatest_entropy,
    least_entropy,
)
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput
from eaft_probe.scans.keys import Arrays
from eaft_probe.scans.scan import Scan
from eaft_probe.view.plots.chart import CONFLICT, heat_map, token_count

Floats = NDArray[np.floating]
Zoom = Literal["conflicts"]
# Tokens from which the cells are 1, 2, 4 or 8 steps wide: some ten tokens in an occupied cell.
FINENESS = ((1_000_000, 1), (30_000, 2), (3_000, 4), (0, 8))
FOR_A_MEAN = 5  # tokens below which a cell is grey, instead of a mean
LEAST_DECADE = -300  # of a probability in float64
BOUNDS = "Dashed: the least and the greatest entropy that a probability allows."


@dataclass(frozen=True, eq=False)
class Grid:
    """Cells by their edges, rising."""

    probs: Floats  # (C + 1,)
    entropies: Floats  # (R + 1,) nats
    by: int | None  # cells of `by` × `by` of the finest; None: of a zoom, with logarithmic probs

    @classmethod
    def whole(cls, by: int) -> "Grid":
        return cls(
            np.arange(PROB_BINS // by + 1) * by * PROB_STEP,
            np.arange(ENTROPY_BINS // by + 1) * by * ENTROPY_STEP,
            by,
        )

    @classmethod
    def of(cls, scans: Sequence[Scan], by: int, zoom: Zoom | None) -> "Grid":
        """The whole plane, or the conflict regions: up to twice their entropy, from the lowest
        probability there. Raises `BadInput` where no token lies there, and `ScanError`."""
        if zoom is None:
            return cls.whole(by)
        if zoom != "conflicts":
            raise BadInput(f"--zoom is conflicts, found {zoom!r}")
        top = np.clip(2 * max(s.rule.entropy_below for s in scans), 1, ENTROPY_BINS * ENTROPY_STEP)
        height = by * ENTROPY_STEP
        entropies = np.arange(math.ceil(top / height) + 1) * height
        decades = -min(-2, _least_decade(scans, float(entropies[-1])))
        return cls(np.logspace(-decades, 0, decades * 16 // by + 1), entropies, None)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.entropies) - 1, len(self.probs) - 1

    def sums(self, columns: Arrays, weights: NDArray[Any]) -> Floats:
        """(R, C) sums of the weights of the tokens in each cell."""
        if self.by is not None:
            sums = np.bincount(cell(columns, self.by), weights, math.prod(self.shape))
            return sums.astype(np.float64, copy=False).reshape(self.shape)
        edges = (self.entropies, np.log(self.probs))
        logprob = np.minimum(columns["logprob"], 0)
        return np.histogram2d(columns["entropy"], logprob, edges, weights=weights)[0]

    def counts(self, scan: Scan) -> NDArray[np.int64]:
        """(R, C) how many tokens of the scan lie in each cell."""
        if self.by is not None:
            return counted(scan).plane().coarse(self.by)
        counts = np.zeros(self.shape)
        for columns in scan.token_arrays(["entropy", "logprob"]):
            counts += self.sums(columns, np.ones(len(columns["entropy"])))
        return counts.astype(np.int64)

    @property
    def unit(self) -> str:
        """What densities are counted by across."""
        return "decade of prob" if self.by is None else "unit of prob"

    def areas(self) -> Floats:
        """(R, C) nats times `unit`."""
        across = np.log10(self.probs) if self.by is None else self.probs
        return np.outer(np.diff(self.entropies), np.diff(across))

    def top(self, planes: Iterable[NDArray[Any]]) -> float:
        """The end of the entropy axis: a little above the highest cell with a token."""
        return self.end(
            float(self.entropies[max(np.flatnonzero(p.sum(1))[-1] for p in planes) + 1])
        )

    def end(self, highest: float) -> float:
        """Of the entropy axis: a little above the highest, at least 1 nat."""
        return max(1.0, min(1.04 * highest, float(self.entropies[-1])))

    def frame(self, values: Mapping[str, NDArray[Any]], counts: NDArray[Any]) -> pandas.DataFrame:
        """The occupied cells, a row each, with their bounds."""
        up, across = np.nonzero(counts)
        bounds = {
            "prob_from": self.probs[across],
            "prob_to": self.probs[across + 1],
            "entropy_from": self.entropies[up],
            "entropy_to": self.entropies[up + 1],
        }
        return pandas.DataFrame(bounds | {n: value[up, across] for n, value in values.items()})


def _least_decade(scans: Sequence[Scan], top: float) -> int:
    """The power of ten below the lowest probability of a token with less entropy than `top`."""
    least = []
    for scan in scans:
        scan.require_all("--zoom conflicts")
        ((logprob,),) = scan.rows("SELECT min(logprob) FROM tokens WHERE entropy < ?", [top])
        least += [] if logprob is None else [max(float(logprob) / math.log(10), LEAST_DECADE)]
    if not least:
        raise BadInput(f"no token has an entropy below {top:.3g} nats; leave out --zoom conflicts")
    return math.floor(min(least) - 1e-6)  # float32's rounding


def step(count: int) -> int:
    """How many of the finest cells to draw as one, each way."""
    return next(by for least, by in FINENESS if count >= least)


def draw_plane(
    axes: Axes, values: NDArray[Any], grid: Grid, top: float, **style: Any
) -> ScalarMappable:
    """The cells in colour; those that are NaN stay blank."""
    image: ScalarMappable
    if grid.by is not None:
        image = heat_map(axes, values, (0, 1, 0, grid.entropies[-1]), **style)
    else:
        cells = np.ma.masked_invalid(values)
        image = axes.pcolormesh(grid.probs, grid.entropies, cells, rasterized=True, **style)
    label_plane(axes, grid, top)
    return image


def label_plane(axes: Axes, grid: Grid, top: float) -> None:
    if grid.by is None:
        axes.set_xscale("log")
    axes.set(
        xlim=(grid.probs[0], 1),
        ylim=(0, top),
        xlabel="prob (of the label)",
        ylabel="entropy (nats)",
    )


def grey(axes: Axes, counts: NDArray[Any], grid: Grid, top: float) -> None:
    """The cells with too few tokens for a mean, over what is drawn there."""
    few = np.where((counts > 0) & (counts < FOR_A_MEAN), 1.0, np.nan)
    draw_plane(axes, few, grid, top, cmap=ListedColormap(["#d9d9d9"]))


def guides(axes: Axes, scan: Scan, grid: Grid, top: float, text: str = "") -> None:
    """The least and the greatest entropy at each probability, and the conflict region with words
    beside it, of a zoom above it."""
    bounds(axes, scan, grid, top)
    left, rule = float(grid.probs[0]), scan.rule
    visible = rule.surprise_above is None  # a rule by surprise has no box
    right = rule.prob_below if grid.by is not None else max(left, rule.prob_below)
    box = Rectangle(
        (left, 0),
        right - left,
        rule.entropy_below,
        fill=False,
        edgecolor=CONFLICT,
        linewidth=1.3,
        zorder=4,
        clip_on=False,
        visible=visible,
    )
    axes.add_patch(box)
    zoomed = grid.by is None
    words = axes.annotate(
        text,
        (left, rule.entropy_below) if zoomed else (min(right, 0.58), rule.entropy_below / 2),
        xytext=(3, 4) if zoomed else (4, 0),
        textcoords="offset points",
        color="#8a3c00",
        va="bottom" if zoomed else "center",
        fontsize=6.5,
        zorder=5,
        bbox={"boxstyle": "round,pad=0.05", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
    )
    for artist in (box, words):  # a rule beyond the axes takes no room from them
        artist.set_in_layout(False)


def bounds(axes: Axes, scan: Scan, grid: Grid, top: float) -> None:
    """The least and the greatest entropy that a token of probability p can have."""
    p = np.linspace(0, 1, 513) if grid.by is not None else np.geomspace(grid.probs[0], 1, 513)
    for bound in (least_entropy(p), greatest_entropy(p, scan.manifest["model"]["vocab_size"])):
        axes.plot(p, bound, color="#333333", linewidth=0.7, linestyle=(0, (4, 2)))
    axes.set_ylim(0, top)


def conflict_share(scan: Scan, rule: ConflictRule | None = None) -> float:
    """Exactly; the plane's cells do not end at the thresholds. Under the scan's own rule or
    another one, which takes a scan that keeps all of its tokens."""
    if rule is None or rule.thresholds == scan.rule.thresholds:
        return counted(scan).conflicts() / token_count(scan)
    scan.require_all("counting conflicts by another rule than the scan's own")
    ((count,),) = scan.rows(f"SELECT count(*) FROM tokens WHERE {rule.sql}")
    return int(count) / token_count(scan)
