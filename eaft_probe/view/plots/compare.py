"""Where tokens moved between two scans of the same data: on the plane, and by group."""

import math
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm
from matplotlib.ticker import NullFormatter

from eaft_probe.analysis.histogram2d import cell
from eaft_probe.errors import BadInput
from eaft_probe.quantities import counted_noun, percent
from eaft_probe.scans.keys import Arrays
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import require_delta
from eaft_probe.verbs.compare import By, by_group, comparison_kind, means_and_shares, token_changes
from eaft_probe.view.labels import caption, data_name, model_name, names
from eaft_probe.view.plots.chart import PAGE, Chart, new_chart, open_scans, plot, token_count
from eaft_probe.view.plots.landscape import FEW
from eaft_probe.view.plots.plane import BOUNDS, Grid, draw_plane, guides

STEPS = 16  # of the finest cells: 1/16 by half a nat; arrows from finer ones run together
GRID = Grid.whole(STEPS)
CELLS = math.prod(GRID.shape)
ARROW = "#0072B2"
COLOURS = {"forgotten": "#b2182b", "unchanged": "#dddddd", "learned": "#2166ac"}  # ends of RdBu
ENDS: dict[str, Literal["left", "right"]] = {"forgotten": "left", "learned": "right"}


@plot
def compare(*pair: Scan | str | Path, delta: float = math.log(2), by: By | None = None) -> Chart:
    """Where tokens moved from scan A to scan B of the same data, and which were learned.

    Left: the density of A, and from each cell with 10 tokens or more an arrow from their mean
    place under A to their mean place under B. Middle: the share learned less the share forgotten.
    Right: both shares by group of tokens under A. Arrows also show regression to the mean: of
    two unrelated models all point to the middle.

    delta: nats of log-probability by which a learned token rises and a forgotten one falls; ln 2.
    by: "tokens" compares scans whose data have other fingerprints but the same tokens.
    """
    opened = open_scans(pair)
    if len(opened) != 2:
        raise BadInput(f"plot compare takes two scans, found {len(opened)}")
    a, b = opened
    require_delta(delta)
    if comparison_kind(a, b, by)[0] != "tokens":
        raise BadInput(
            "plot compare shows scans of the same data; `plot landscape A B "
            "--difference` shows where one data set has more"
        )
    return _draw(a, b, cells_and_groups(a, b, delta), delta)


def cells_and_groups(a: Scan, b: Scan, delta: float) -> pandas.DataFrame:
    """A row for each occupied cell of A's plane (group "cell") and for each group."""
    pieces = (
        pandas.concat([_by_cell(columns, values), by_group(columns, values, a.rule)])
        for columns, values in token_changes(a, b, delta)
    )
    rows = means_and_shares(reduce(add, pieces))
    cells = rows[:CELLS][rows["tokens"][:CELLS] > 0]
    low, left = np.divmod(cells.index.to_numpy(int), GRID.shape[1])
    for name, corner, edges in (("prob", left, GRID.probs), ("entropy", low, GRID.entropies)):
        cells[f"{name}_from"], cells[f"{name}_to"] = edges[corner], edges[corner + 1]
    cells.insert(0, "group", "cell")
    groups = rows[CELLS:].rename_axis("group").reset_index()
    data = pandas.concat([cells, groups], ignore_index=True)
    return data.assign(net_share=data["learned_share"] - data["forgotten_share"])


def _by_cell(columns: Arrays, values: pandas.DataFrame) -> pandas.DataFrame:
    """(CELLS, K) sums of the values over the cells of A's plane, the lowest row first."""
    index = cell(columns, STEPS)
    return pandas.DataFrame({name: np.bincount(index, values[name], CELLS) for name in values})


def _draw(a: Scan, b: Scan, data: pandas.DataFrame, delta: float) -> Chart:
    cells, groups = data[data["group"] == "cell"], data[data["group"] != "cell"]
    counts = groups.set_index("group")["tokens"]
    # The end of the entropy axis: a little above the highest token and the highest arrow.
    top = max(1.0, 1.02 * float(cells[["entropy_to", "mean_entropy_b"]].max(axis=None)))
    with new_chart(PAGE, 3.2, data, _note(a, b, counts["all"], delta)) as chart:
        first, second = names([a, b])
        chart.suptitle(
            f"A: {first}  →  B: {second}", x=0.01, ha="left", fontsize=8, parse_math=False
        )
        left, middle, right = chart.subplots(1, 3, width_ratios=(5, 5, 3))
        _density(chart, left, cells, top)
        _net(chart, middle, cells, top)
        guides(
            left,
            a,
            GRID,
            top,
            f"conflicts: {percent(counts['conflict'] / counts['all'], digits=2)}",
        )
        guides(middle, a, GRID, top)
        _bars(right, groups)
    return chart


def _note(a: Scan, b: Scan, count: int, delta: float) -> str:
    both = f"{counted_noun(count, 'token')} {'is' if count == 1 else 'are'} in both"
    return (
        f"A: {caption([a], kept=True)} B: {data_name(b)} under {model_name(b)}, "
        f"{counted_noun(token_count(b), 'trained token')}. {both}. Learned, forgotten: "
        f"log-probability up, down by more than {delta:.3g} nats; grey: unchanged. Cells and "
        f"groups are those under A; cells with fewer than {FEW} tokens have no arrow and no share. "
        f"{BOUNDS}"
    )


def _density(chart: Chart, axes: Axes, cells: pandas.DataFrame, top: float) -> None:
    """A's tokens in grey, and an arrow from each well-filled cell."""
    density = cells["tokens"] / cells["tokens"].sum() / GRID.areas()[0, 0]
    norm = LogNorm(density.min() / 2, density.max() * 8)  # greys that arrows stand out from
    bar = _map(chart, axes, cells, density, top, "density of A", norm=norm, cmap="Greys")
    bar.ax.xaxis.set_minor_formatter(NullFormatter())  # of less than a decade all would be written
    many = cells[cells["tokens"] >= FEW]
    start, end = (many[[f"mean_prob_{s}", f"mean_entropy_{s}"]].to_numpy() for s in "ab")
    axes.quiver(
        *start.T,
        *(end - start).T,
        angles="xy",
        scale_units="xy",
        scale=1,
        color=ARROW,
        width=0.006,
        headwidth=3.5,
        headlength=4,
        zorder=3,
    )
    axes.set_title("mean move, A to B", loc="left")


def _net(chart: Chart, axes: Axes, cells: pandas.DataFrame, top: float) -> None:
    share = 100 * cells["net_share"].where(cells["tokens"] >= FEW)
    most = max([1.0, *share.abs().dropna()])  # a scan and itself: 0 everywhere
    label = "learned − forgotten (% of tokens)"
    _map(chart, axes, cells, share, top, label, vmin=-most, vmax=most, cmap="RdBu")
    axes.set_title("learned or forgotten", loc="left")


def _map(
    chart: Chart,
    axes: Axes,
    cells: pandas.DataFrame,
    values: pandas.Series,
    top: float,
    label: str,
    **style: Any,
) -> Colorbar:
    """One value for each cell on the plane, blank where there is none."""
    grid = np.full(GRID.shape, np.nan)
    grid[
        GRID.entropies.searchsorted(cells["entropy_from"]),
        GRID.probs.searchsorted(cells["prob_from"]),
    ] = values
    image = draw_plane(axes, grid, GRID, top, **style)
    return chart.colorbar(image, ax=axes, location="bottom", aspect=30, pad=0.02, label=label)


def _bars(axes: Axes, groups: pandas.DataFrame) -> None:
    """Forgotten from the left, learned from the right, what is unchanged between them."""
    places, left = np.arange(len(groups)), np.zeros(len(groups))
    for name, colour in COLOURS.items():
        share = 100 * groups[f"{name}_share"].fillna(0).to_numpy()
        axes.barh(places, share, 0.5, left=left, color=colour, label=name)
        left = left + share
    for name, side in ENDS.items():
        axes.set_title(name, loc=side, color=COLOURS[name])
    for place, row in enumerate(groups.to_dict("records")):
        for name, side in ENDS.items():
            axes.text(
                100 * (side == "right") or 1.5,  # clear of the axis
                place - 0.28,
                percent(row[f"{name}_share"], digits=2) if row["tokens"] else "",
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
