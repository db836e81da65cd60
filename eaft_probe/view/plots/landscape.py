"""The entropy–probability landscape: density, difference of two scans, or the paper's scatter."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

from eaft_probe.errors import BadInput
from eaft_probe.quantities import percent
from eaft_probe.scans.scan import Scan
from eaft_probe.view.labels import caption, names
from eaft_probe.view.plots.chart import (
    COLUMN,
    Chart,
    by_scan,
    new_chart,
    open_scans,
    panels_of,
    plot,
    require_sample,
    rows_and_columns,
    token_count,
    width_of,
)
from eaft_probe.view.plots.plane import (
    BOUNDS,
    Grid,
    Zoom,
    bounds,
    conflict_share,
    draw_plane,
    guides,
    label_plane,
    step,
)

DOTS = 20_000  # of a scatter panel
PAPER_COLOURS = ("#ff4c55", "#77abf3", "#009E73", "#E69F00")  # arXiv 2601.02151, Fig. 1b
FEW = 10  # tokens in both scans together below which a cell's difference is not drawn


@plot
def landscape(
    *scans: Scan | str | Path,
    style: Literal["density", "scatter"] = "density",
    difference: bool = False,
    zoom: Zoom | None = None,
) -> Chart:
    """Where the tokens lie: probability of the label across, entropy (nats) up.

    Colour is the density on a logarithmic scale, one scale for all scans. Dashed lines are exact
    bounds: no token lies below the binary entropy of its probability, nor above the entropy of the
    rest spread evenly. The conflict region is outlined with its share of the tokens.

    style: "scatter" draws a random 20,000 tokens of each scan as dots, as in arXiv 2601.02151,
        Fig. 1b.
    difference: of two scans, log₂ of the ratio of their densities; the first scan's rule counts
        the conflicts of both.
    zoom: "conflicts" draws the conflict region and as much above it, with a logarithmic axis of
        probability; of scans that keep all of their tokens.
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
        return _difference(opened, zoom)
    return _scatter(opened, zoom) if style == "scatter" else _density(opened, zoom)


# --- density ---


def _density(scans: Sequence[Scan], zoom: Zoom | None) -> Chart:
    grid = Grid.of(scans, step(max(map(token_count, scans))), zoom)
    planes = [grid.counts(s) for s in scans]
    densities = [p / token_count(s) / grid.areas() for p, s in zip(planes, scans, strict=True)]
    frames = [
        grid.frame({"tokens": p, "density": d}, p) for p, d in zip(planes, densities, strict=True)
    ]
    top, data = grid.top(planes), by_scan(frames, scans)
    norm = LogNorm(data["density"].min(), data["density"].max())
    rows, columns = rows_and_columns(len(scans))
    note = f"{caption(scans)} {BOUNDS}"
    with new_chart(width_of(columns), 2.6 * rows + 0.7, data, note) as chart:
        cells = chart.add_gridspec(
            2 * rows, 2 * columns, height_ratios=(1, 5) * rows, width_ratios=(5, 1) * columns
        )
        mains = []
        for i, (scan, counts, name) in enumerate(zip(scans, planes, names(scans), strict=True)):
            low, left = 2 * (i // columns), 2 * (i % columns)
            main = chart.add_subplot(cells[low + 1, left])
            density = np.where(counts, densities[i], np.nan)
            image = draw_plane(main, density, grid, top, norm=norm, cmap="viridis_r")
            guides(main, scan, grid, top, f"conflicts: {percent(conflict_share(scan), digits=2)}")
            across = chart.add_subplot(cells[low, left], sharex=main)
            up = chart.add_subplot(cells[low + 1, left + 1], sharey=main)
            _marginals(across, up, counts / token_count(scan), grid)
            up.set_xticks(up.get_xticks()[-2 if columns < 3 else -1 :])  # as many as there is room
            across.set_title(name, loc="left", parse_math=False)
            mains.append(main)
        chart.colorbar(
            image,
            ax=mains,
            location="bottom",
            aspect=40,
            pad=0.02,
            label=f"density: share of tokens per {grid.unit} and nat",
        )
    return chart


def _marginals(across: Axes, up: Axes, shares: NDArray[Any], grid: Grid) -> None:
    """Share of the tokens by probability above, by entropy at the right; logarithmic."""
    by_prob, by_entropy = shares.sum(0), shares.sum(1)
    least = min(s[s > 0].min(initial=1) for s in (by_prob, by_entropy)) / 2
    style: dict[str, Any] = {"baseline": least, "fill": True, "color": "#888888"}
    across.stairs(by_prob, grid.probs, **style)
    up.stairs(by_entropy, grid.entropies, orientation="horizontal", **style)
    across.set(yscale="log", ylabel="share")
    up.set(xscale="log", xlabel="share")
    across.minorticks_off()
    up.minorticks_off()
    decades = math.ceil(math.log10(least)), math.floor(math.log10(by_entropy.max(initial=least)))
    up.set_xticks([10.0**d for d in sorted({*decades})])
    across.tick_params(labelbottom=False)
    up.tick_params(labelleft=False, labelsize=6)


# --- difference ---


def _difference(scans: Sequence[Scan], zoom: Zoom | None) -> Chart:
    """log₂ of the densities' ratio, half a token added to each cell."""
    grid = Grid.of(scans, step(min(map(token_count, scans))), zoom)
    one, other = (grid.counts(s) for s in scans)
    shares = [(p + 0.5) / token_count(s) for p, s in zip((one, other), scans, strict=True)]
    ratio = np.where(one + other >= FEW, np.log2(shares[0] / shares[1]), np.nan)
    first, second = names(scans)
    values = {"tokens_first": one, "tokens_second": other, "log2_ratio": ratio}
    data = grid.frame(values, one + other).assign(first=first, second=second)
    top, rule = grid.top([one + other]), scans[0].rule
    note = f"{caption(scans)} Cells with fewer than {FEW} tokens of both are left blank. {BOUNDS}"
    if scans[1].rule.thresholds != rule.thresholds:
        note += f" Conflicts of both scans are counted by the first scan's rule: {rule}."
    with new_chart(COLUMN, 3.3, data, note) as chart:
        main = chart.add_subplot()
        most = float(np.abs(ratio[np.isfinite(ratio)]).max(initial=1).clip(max=4))
        image = draw_plane(main, ratio, grid, top, cmap="PuOr_r", vmin=-most, vmax=most)
        conflicts = " against ".join(percent(conflict_share(s, rule), digits=2) for s in scans)
        guides(main, scans[0], grid, top, f"conflicts: {conflicts}")
        bounds(main, scans[1], grid, top)
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


def _scatter(scans: Sequence[Scan], zoom: Zoom | None) -> Chart:
    for scan in scans:
        require_sample(scan, "landscape --style scatter")
    grid = Grid.of(scans, 1, zoom)
    frames = [sample(s, DOTS, grid.entropies[-1]) for s in scans]
    data = by_scan(frames, scans)
    top = grid.end(float(data["entropy"].max()))
    counts = ", ".join(
        f"{len(f):,} of {token_count(s):,}" for f, s in zip(frames, scans, strict=True)
    )
    note = f"{caption(scans, kept=True)} Dots: {counts} tokens, drawn at random. {BOUNDS}"
    rows, columns = rows_and_columns(len(scans))
    with new_chart(width_of(columns), 2.6 * rows + 0.4, data, note) as chart:
        panels = panels_of(chart, len(scans), sharey=True)
        for i, (axes, scan, frame) in enumerate(zip(panels, scans, frames, strict=True)):
            colour = PAPER_COLOURS[i % len(PAPER_COLOURS)]
            axes.scatter(
                frame["prob"], frame["entropy"], s=1.2, color=colour, linewidths=0, rasterized=True
            )
            label_plane(axes, grid, top)
            guides(axes, scan, grid, top, f"conflicts: {percent(conflict_share(scan), digits=2)}")
            axes.set_title(names(scans)[i], loc="left", parse_math=False)
    return chart


def sample(scan: Scan, most: int, below: float = math.inf) -> pandas.DataFrame:
    """At most that many tokens, with less entropy than `below`; the same on every call, chosen by
    a hash of their place."""
    place = ", ".join(scan.token_key)
    query = f"""SELECT {place}, prob, entropy, conflict FROM tokens WHERE entropy < ?
                ORDER BY hash({place}), {place} LIMIT ?"""
    return scan.frame(query, [below, most])
