"""The entropy–probability landscape: density, difference of two scans, or the paper's scatter."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from eaft_probe.analysis.aggregates import counted
from eaft_probe.analysis.histogram2d import (
    ENTROPY_BINS,
    ENTROPY_STEP,
    PROB_STEP,
    greatest_entropy,
    least_entropy,
)
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput
from eaft_probe.scans.scan import Scan
from eaft_probe.view.plots.chart import (
    COLUMN,
    CONFLICT,
    Chart,
    by_scan,
    caption,
    heat_map,
    names,
    new_chart,
    open_scans,
    percent,
    plot,
    require_sample,
    token_count,
)

# Tokens from which the cells are 1, 2, 4 or 8 steps wide: some ten tokens in an occupied cell.
FINENESS = ((1_000_000, 1), (30_000, 2), (3_000, 4), (0, 8))
DOTS = 20_000  # of a scatter panel
PAPER_COLOURS = ("#ff4c55", "#77abf3", "#009E73", "#E69F00")  # arXiv 2601.02151, Fig. 1b
FEW = 10  # tokens in both scans together below which a cell's difference is not drawn
FOR_A_MEAN = 5  # tokens below which a cell is grey, instead of a mean


@plot
def landscape(
    *scans: Scan | str | Path,
    style: Literal["density", "scatter"] = "density",
    difference: bool = False,
) -> Chart:
    """Where the tokens lie: probability of the label across, entropy (nats) up.

    Colour is the density on a logarithmic scale, one scale for all scans. Dashed lines are exact
    bounds: no token lies below the binary entropy of its probability, nor above the entropy of the
    rest spread evenly. The conflict region is outlined with its share of the tokens.

    style: "scatter" draws a random 20,000 tokens of each scan as dots, as in arXiv 2601.02151,
        Fig. 1b.
    difference: of two scans, log₂ of the ratio of their densities; the first scan's rule counts
        the conflicts of both.
    """
    opened = open_scans(scans)
    if style not in ("density", "scatter"):
        raise BadInput(f"--style is density or scatter, found {style!r}")
    if difference and (len(opened) != 2 or style != "density"):
        raise BadInput(
            f"--difference compares the densities of two scans, found {len(opened)}"
            + (" as a scatter" if style != "density" else "")
        )
    if difference:
        return _difference(opened)
    return _scatter(opened) if style == "scatter" else _density(opened)


# --- the plane ---


def step(count: int) -> int:
    """How many of the finest cells to draw as one, each way."""
    return next(by for least, by in FINENESS if count >= least)


def ceiling(planes: Iterable[NDArray[Any]], by: int) -> float:
    """The end of the entropy axis: a little above the highest token, at least 1 nat."""
    highest = max(int(np.flatnonzero(p.sum(1))[-1]) + 1 for p in planes)
    return max(1.0, min(highest * by * ENTROPY_STEP * 1.04, ENTROPY_BINS * ENTROPY_STEP))


def cells(values: Mapping[str, NDArray[Any]], counts: NDArray[Any], by: int) -> pandas.DataFrame:
    """The occupied cells, a row each, with their bounds."""
    up, across = np.nonzero(counts)
    bounds = {
        "prob_from": across * by * PROB_STEP,
        "prob_to": (across + 1) * by * PROB_STEP,
        "entropy_from": up * by * ENTROPY_STEP,
        "entropy_to": (up + 1) * by * ENTROPY_STEP,
    }
    return pandas.DataFrame(bounds | {name: value[up, across] for name, value in values.items()})


def draw_plane(axes: Axes, values: NDArray[Any], by: int, top: float, **style: Any) -> AxesImage:
    """The cells as an image; those that are NaN stay blank."""
    image = heat_map(axes, values, (0, 1, 0, len(values) * by * ENTROPY_STEP), **style)
    _label_plane(axes, top)
    return image


def _label_plane(axes: Axes, top: float) -> None:
    axes.set(xlim=(0, 1), ylim=(0, top), xlabel="prob (of the label)", ylabel="entropy (nats)")


def grey(axes: Axes, counts: NDArray[np.int64], by: int, top: float) -> None:
    """The cells with too few tokens for a mean, over what is drawn there."""
    few = np.where((counts > 0) & (counts < FOR_A_MEAN), 1.0, np.nan)
    draw_plane(axes, few, by, top, cmap=ListedColormap(["#d9d9d9"]))


def guides(axes: Axes, scan: Scan, top: float, text: str = "") -> None:
    """The least and the greatest entropy at each probability, and the conflict region with words
    beside it."""
    bounds(axes, scan, top)
    rule = scan.rule
    box = Rectangle(
        (0, 0),
        rule.prob_below,
        rule.entropy_below,
        fill=False,
        edgecolor=CONFLICT,
        linewidth=1.3,
        zorder=4,
        clip_on=False,
    )
    axes.add_patch(box)
    words = axes.text(
        min(rule.prob_below + 0.02, 0.6),
        rule.entropy_below / 2,
        text,
        color="#8a3c00",
        va="center",
        fontsize=7,
        zorder=5,
        bbox={"boxstyle": "round,pad=0.05", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
    )
    for artist in (box, words):  # a rule beyond the axes takes no room from them
        artist.set_in_layout(False)


def bounds(axes: Axes, scan: Scan, top: float) -> None:
    """The least and the greatest entropy that a token of probability p can have."""
    p = np.linspace(0, 1, 513)
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


# --- density ---


def _density(scans: Sequence[Scan]) -> Chart:
    by = step(max(map(token_count, scans)))
    area = by * by * PROB_STEP * ENTROPY_STEP
    planes = [counted(s).plane().coarse(by) for s in scans]
    densities = [p / token_count(s) / area for p, s in zip(planes, scans, strict=True)]
    frames = [
        cells({"tokens": p, "density": d}, p, by) for p, d in zip(planes, densities, strict=True)
    ]
    top = ceiling(planes, by)
    norm = LogNorm(min(d[d > 0].min() for d in densities), max(d.max() for d in densities))
    with new_chart(COLUMN * len(scans), 3.3, by_scan(frames, scans), caption(scans)) as chart:
        grid = chart.add_gridspec(
            2, 2 * len(scans), height_ratios=(1, 5), width_ratios=(5, 1) * len(scans)
        )
        mains = []
        for i, (scan, counts, name) in enumerate(zip(scans, planes, names(scans), strict=True)):
            main = chart.add_subplot(grid[1, 2 * i])
            density = np.where(counts, densities[i], np.nan)
            image = draw_plane(main, density, by, top, norm=norm, cmap="viridis_r")
            guides(main, scan, top, f"conflicts: {percent(conflict_share(scan))}")
            across = chart.add_subplot(grid[0, 2 * i], sharex=main)
            up = chart.add_subplot(grid[1, 2 * i + 1], sharey=main)
            _marginals(across, up, counts, by)
            across.set_title(name, loc="left", parse_math=False)
            mains.append(main)
        chart.colorbar(
            image,
            ax=mains,
            location="bottom",
            aspect=40,
            pad=0.02,
            label="density: share of tokens per unit of prob and nat",
        )
    return chart


def _marginals(across: Axes, up: Axes, counts: NDArray[Any], by: int) -> None:
    """Share of the tokens by probability above, by entropy at the right; logarithmic."""
    shares = [counts.sum(axis) / counts.sum() for axis in (0, 1)]
    least = min(s[s > 0].min() for s in shares) / 2
    edges = [np.arange(len(share) + 1) * by for share in shares]
    across.stairs(shares[0], edges[0] * PROB_STEP, baseline=least, fill=True, color="#888888")
    up.stairs(
        shares[1],
        edges[1] * ENTROPY_STEP,
        baseline=least,
        orientation="horizontal",
        fill=True,
        color="#888888",
    )
    across.set(yscale="log", ylabel="share")
    up.set(xscale="log", xlabel="share")
    across.minorticks_off()
    up.minorticks_off()
    across.tick_params(labelbottom=False)
    up.tick_params(labelleft=False)


# --- difference ---


def _difference(scans: Sequence[Scan]) -> Chart:
    """log₂ of the densities' ratio, half a token added to each cell."""
    by = step(min(map(token_count, scans)))
    one, other = (counted(s).plane().coarse(by) for s in scans)
    shares = [(p + 0.5) / token_count(s) for p, s in zip((one, other), scans, strict=True)]
    ratio = np.where(one + other >= FEW, np.log2(shares[0] / shares[1]), np.nan)
    first, second = names(scans)
    values = {"tokens_first": one, "tokens_second": other, "log2_ratio": ratio}
    data = cells(values, one + other, by).assign(first=first, second=second)
    top = ceiling([one + other], by)
    rule = scans[0].rule
    note = f"{caption(scans)} Cells with fewer than {FEW} tokens of both are left blank."
    if scans[1].rule.thresholds != rule.thresholds:
        note += f" Conflicts of both scans are counted by the first scan's rule: {rule}."
    with new_chart(COLUMN, 3.3, data, note) as chart:
        main = chart.add_subplot()
        most = float(np.abs(ratio[np.isfinite(ratio)]).max(initial=1).clip(max=4))
        image = draw_plane(main, ratio, by, top, cmap="PuOr_r", vmin=-most, vmax=most)
        conflicts = " against ".join(percent(conflict_share(s, rule)) for s in scans)
        guides(main, scans[0], top, f"conflicts: {conflicts}")
        bounds(main, scans[1], top)
        chart.colorbar(
            image,
            ax=main,
            location="bottom",
            aspect=40,
            pad=0.02,
            extend="both",
            label="log₂ of the ratio of densities",
        )
        main.set_title(
            f"orange: more in {first}\npurple: more in {second}", loc="left", parse_math=False
        )
    return chart


# --- scatter ---


def _scatter(scans: Sequence[Scan]) -> Chart:
    for scan in scans:
        require_sample(scan, "landscape --style scatter")
    frames = [sample(s, DOTS) for s in scans]
    data = by_scan(frames, scans)
    top = max(1.0, 1.04 * float(data["entropy"].max()))
    counts = ", ".join(
        f"{len(f):,} of {token_count(s):,}" for f, s in zip(frames, scans, strict=True)
    )
    note = f"{caption(scans, kept=True)} Dots: {counts} tokens, drawn at random."
    with new_chart(COLUMN * len(scans), 3.0, data, note) as chart:
        panels = chart.subplots(1, len(scans), sharey=True, squeeze=False)[0]
        for i, (axes, scan, frame) in enumerate(zip(panels, scans, frames, strict=True)):
            colour = PAPER_COLOURS[i % len(PAPER_COLOURS)]
            axes.scatter(
                frame["prob"], frame["entropy"], s=1.2, color=colour, linewidths=0, rasterized=True
            )
            _label_plane(axes, top)
            guides(axes, scan, top, f"conflicts: {percent(conflict_share(scan))}")
            axes.set_title(names(scans)[i], loc="left", parse_math=False)
    return chart


def sample(scan: Scan, most: int) -> pandas.DataFrame:
    """At most that many tokens, the same on every call, chosen by a hash of their place."""
    place = ", ".join(scan.token_key)
    query = f"""SELECT {place}, prob, entropy, conflict FROM tokens
                ORDER BY hash({place}), {place} LIMIT ?"""
    return scan.frame(query, [most])
