"""Where tokens moved between two scans of the same data: on the plane, and by group."""

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from eaft_probe.analysis.histogram2d import ENTROPY_BINS, ENTROPY_STEP, PROB_BINS, PROB_STEP, cell
from eaft_probe.errors import BadInput
from eaft_probe.scans.keys import Arrays
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import require_delta
from eaft_probe.verbs.compare import By, by_group, described, how, moved
from eaft_probe.view.plots.chart import (
    Chart,
    caption,
    names,
    new_chart,
    opened,
    percent,
    tokens,
)
from eaft_probe.view.plots.landscape import FEW, bounds, draw_plane, outline

STEPS = 16  # of the finest cells: 1/16 by half a nat; arrows from finer ones run together
SHAPE = (ENTROPY_BINS // STEPS, PROB_BINS // STEPS)
ARROW = "#0072B2"
COLOURS = {"forgotten": "#b2182b", "unchanged": "#dddddd", "learned": "#2166ac"}  # ends of RdBu
ENDS: dict[str, Literal["left", "right"]] = {"forgotten": "left", "learned": "right"}


def compare(*pair: Scan | str | Path, delta: float = math.log(2), by: By | None = None) -> Chart:
    """Where tokens moved from scan A to scan B of the same data, and which were learned.

    Left: the density of A, and from each cell with 10 tokens or more an arrow from their mean
    place under A to their mean place under B. Middle: the share learned less the share forgotten.
    Right: both shares by group of tokens under A. Arrows show what they regress to as well: of
    two unrelated models all point to the middle.

    delta: nats of log-probability by which a learned token rises and a forgotten one falls; ln 2.
    by: "tokens" compares scans whose data have other fingerprints but the same tokens.
    """
    found = opened(pair)
    if len(found) != 2:
        raise BadInput(f"plot compare takes two scans, found {len(found)}")
    a, b = found
    require_delta(delta)
    if how(a, b, by)[0] != "tokens":
        raise BadInput(
            "plot compare shows scans of the same data; `plot landscape A B "
            "--difference` shows where one data set has more"
        )
    return _drawn(a, b, _cells_and_groups(a, b, delta), delta)


def _cells_and_groups(a: Scan, b: Scan, delta: float) -> pandas.DataFrame:
    """A row for each occupied cell of A's plane (group "cell") and for each group."""
    cells: pandas.DataFrame | None = None
    groups: pandas.DataFrame | None = None
    for mine, values in moved(a, b, delta):
        cells = _added(cells, _by_cell(mine, values))
        groups = _added(groups, by_group(mine, values, a.rule))
    assert cells is not None  # `moved` raises where there is no token
    assert groups is not None
    rows = described(cells[cells["tokens"] > 0])
    low, left = np.divmod(rows.index.to_numpy(), SHAPE[1])
    for name, corner, size in (("prob", left, PROB_STEP), ("entropy", low, ENTROPY_STEP)):
        rows[f"{name}_from"], rows[f"{name}_to"] = ((corner + end) * STEPS * size for end in (0, 1))
    rows.insert(0, "group", "cell")
    named = described(groups).rename_axis("group").reset_index()
    data = pandas.concat([rows, named], ignore_index=True)
    return data.assign(net_share=data["learned_share"] - data["forgotten_share"])


def _added(sums: pandas.DataFrame | None, piece: pandas.DataFrame) -> pandas.DataFrame:
    return piece if sums is None else sums + piece


def _by_cell(mine: Arrays, values: pandas.DataFrame) -> pandas.DataFrame:
    """(cells, K) sums of the values over the cells of A's plane, the lowest row first."""
    up, across = np.divmod(cell(mine), PROB_BINS)
    at = up // STEPS * SHAPE[1] + across // STEPS
    count = math.prod(SHAPE)
    return pandas.DataFrame({name: np.bincount(at, values[name], count) for name in values})


def _drawn(a: Scan, b: Scan, data: pandas.DataFrame, delta: float) -> Chart:
    cells, groups = data[data["group"] == "cell"], data[data["group"] != "cell"]
    counts = groups.set_index("group")["tokens"]
    said = (f"conflicts: {percent(counts['conflict'] / counts['all'])}", "")
    top = _top(cells)
    with new_chart(6.8, 3.2, data, _note(a, b, counts["all"], delta)) as chart:
        first, second = names([a, b])
        chart.suptitle(
            f"A: {first}  →  B: {second}", x=0.01, ha="left", fontsize=8, parse_math=False
        )
        panels = chart.subplots(1, 3, width_ratios=(5, 5, 3))
        _density(chart, panels[0], cells, top)
        _net(chart, panels[1], cells, top)
        for axes, text in zip(panels[:2], said, strict=True):
            bounds(axes, a, top)
            outline(axes, a, text)
        _bars(panels[2], groups)
    return chart


def _note(a: Scan, b: Scan, count: int, delta: float) -> str:
    data, model = b.manifest["data"]["source"], b.manifest["model"]["name"]
    return (
        f"A: {caption([a], kept=True)} B: {data} under {model}, {tokens(b):,} trained tokens. "
        f"{count:,} tokens are in both. Learned, forgotten: log-probability up, down by more than "
        f"{delta:.3g} nats; grey: unchanged. Cells and groups are those under A; cells with fewer "
        f"than {FEW} tokens have no arrow and no share."
    )


def _top(cells: pandas.DataFrame) -> float:
    """The entropy axis' end: a little over the highest token and the highest arrow."""
    highest = max(cells["entropy_to"].max(), cells["mean_entropy_b"].max())
    return max(1.0, 1.02 * float(highest))


def _density(chart: Chart, axes: Axes, cells: pandas.DataFrame, top: float) -> None:
    """A's tokens in grey, and an arrow from each well-filled cell."""
    area = STEPS * STEPS * PROB_STEP * ENTROPY_STEP
    density = cells["tokens"] / cells["tokens"].sum() / area
    norm = LogNorm(density.min() / 2, density.max() * 8)  # greys that arrows stand out from
    image = draw_plane(axes, _grid(cells, density), STEPS, top, norm=norm, cmap="Greys")
    many = cells[cells["tokens"] >= FEW]
    before, after = (many[[f"mean_prob_{s}", f"mean_entropy_{s}"]].to_numpy() for s in "ab")
    axes.quiver(
        *before.T,
        *(after - before).T,
        angles="xy",
        scale_units="xy",
        scale=1,
        color=ARROW,
        width=0.006,
        headwidth=3.5,
        headlength=4,
        zorder=3,
    )
    bar = chart.colorbar(image, ax=axes, location="bottom", aspect=30, pad=0.02)
    bar.ax.xaxis.set_minor_formatter(NullFormatter())  # of less than a decade all would be written
    bar.set_label("density of A")
    axes.set_title("mean move, A to B", loc="left")


def _net(chart: Chart, axes: Axes, cells: pandas.DataFrame, top: float) -> None:
    share = 100 * cells["net_share"].where(cells["tokens"] >= FEW)
    most = max([1.0, *share.abs().dropna()])  # a scan and itself: 0 everywhere
    image = draw_plane(axes, _grid(cells, share), STEPS, top, vmin=-most, vmax=most, cmap="RdBu")
    bar = chart.colorbar(image, ax=axes, location="bottom", aspect=30, pad=0.02)
    bar.set_label("learned − forgotten (% of tokens)")
    axes.set_title("learned or forgotten", loc="left")


def _grid(cells: pandas.DataFrame, values: pandas.Series) -> NDArray[np.float64]:
    """One value for each cell → the plane, NaN where there is none."""
    grid = np.full(SHAPE, np.nan)
    up = (cells["entropy_from"] / (STEPS * ENTROPY_STEP)).astype(int)
    across = (cells["prob_from"] / (STEPS * PROB_STEP)).astype(int)
    grid[up, across] = values
    return grid


def _bars(axes: Axes, groups: pandas.DataFrame) -> None:
    """Forgotten from the left, learned from the right, what is unchanged between them."""
    places, left = np.arange(len(groups)), np.zeros(len(groups))
    for name, colour in COLOURS.items():
        share = 100 * groups[f"{name}_share"].fillna(0).to_numpy()
        axes.barh(places, share, 0.5, left=left, color=colour, label=name)
        left = left + share
    for name, side in ENDS.items():
        axes.set_title(name, loc=side, color=COLOURS[name])
    for place, row in zip(places.tolist(), groups.to_dict("records"), strict=True):
        for name, side in ENDS.items():
            said = percent(row[f"{name}_share"]) if row["tokens"] else ""
            axes.text(
                100 * (side == "right"),
                place - 0.28,
                said,
                ha=side,
                va="bottom",
                fontsize=5.5,
                color=COLOURS[name],
            )
        if not row["tokens"]:
            axes.text(50, place, "no tokens", ha="center", va="center", fontsize=5.5)
    axes.set_yticks(places, groups["group"])
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="tokens of the group (%)")
