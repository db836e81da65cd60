"""Which tokens pull with the data to be retained, and what each objective pays for its gain."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from numpy.typing import NDArray

from eaft_probe.quantities import number
from eaft_probe.scans.alignment import forecast_table
from eaft_probe.scans.scan import Scan
from eaft_probe.view.labels import caption, names, shown
from eaft_probe.view.plots.chart import COLOURS, Chart, new_chart, open_scans, plot, token_count
from eaft_probe.view.plots.plane import BOUNDS, Grid, draw_plane, grey, guides, step

COARSER = 8  # a mean needs more tokens in a cell than a count does
RATES = ["exchange_rate", "exchange_rate_low", "exchange_rate_high"]
WIDTH, HEIGHT = 7.0, 2.9  # inches, of a forecast
# A rate stands to the right of its interval and of the line at 1.
RATE_LABEL: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}


@plot
def forecast(*forecasts: Scan | str | Path) -> Chart:
    """Which tokens pull with the data to be retained, and what each objective pays for its gain.

    Left: mean alignment over the plane. Right: the KL that each objective pays for the same gain,
    over that of sft, with 95 % intervals. A step on a blue token lowers the retained nll, on a red
    one it raises it. Cells with fewer than 5 tokens are grey. Objectives without a rate, whose gain
    is not above 0 for certain, are named.
    Raises `BadInput` for a scan without a finished forecast.
    """
    opened = open_scans(forecasts)
    tables = [forecast_table(s.path) for s in opened]
    grid = alignment_grid(opened)
    planes = [alignment_plane(s, grid) for s in opened]
    data = pandas.concat(
        [_data(*parts, grid) for parts in zip(names(opened), planes, tables, strict=True)],
        ignore_index=True,
    )
    note = f"{caption(opened)} {BOUNDS} The rates are those of one step; see docs/forecast.md."
    with new_chart(WIDTH, HEIGHT * len(opened) + 0.3, data, note) as chart:
        panels = chart.subplots(len(opened), 2, squeeze=False, width_ratios=(1.25, 1))
        for (left, right), scan, plane, table, name in zip(
            panels, opened, planes, tables, names(opened), strict=True
        ):
            _alignment(chart, left, scan, plane, grid)
            left.set_title(name, loc="left", parse_math=False)
            _rates(right, table)
    return chart


def alignment_grid(forecasts: Sequence[Scan]) -> Grid:
    return Grid.whole(step(max(map(token_count, forecasts)) // COARSER))


Plane = tuple[NDArray[np.int64], NDArray[np.floating]]  # (R, C) tokens and mean alignment


def alignment_plane(scan: Scan, grid: Grid) -> Plane:
    """How many tokens lie in each cell, and their mean alignment; NaN where there is none."""
    counts, sums = np.zeros(grid.shape), np.zeros(grid.shape)
    for columns in scan.token_arrays(["prob", "entropy", "logprob", "retain_alignment"]):
        counts += grid.sums(columns, np.ones(len(columns["prob"])))
        sums += grid.sums(columns, columns["retain_alignment"].astype(np.float64))
    return counts.astype(np.int64), sums / np.where(counts, counts, np.nan)


def _data(name: str, plane: Plane, table: pandas.DataFrame, grid: Grid) -> pandas.DataFrame:
    """A row for each occupied cell, and one for each objective."""
    cells = grid.frame({"tokens": plane[0], "mean_retain_alignment": plane[1]}, plane[0])
    rates = table[["objective", *RATES]].astype(dict.fromkeys(RATES, float))
    return pandas.concat([cells, rates], ignore_index=True).assign(scan=name)


def _alignment(chart: Chart, axes: Axes, scan: Scan, plane: Plane, grid: Grid) -> None:
    counts, mean = plane
    most = float(np.nanmax(np.abs(mean))) or 1.0
    top = grid.top([counts])
    image = draw_plane(axes, mean, grid, top, cmap="RdBu", vmin=-most, vmax=most)
    grey(axes, counts, grid, top)
    guides(axes, scan, grid, top)
    chart.colorbar(image, ax=axes, pad=0.02, label="mean alignment with retained data")


def _rates(axes: Axes, table: pandas.DataFrame) -> None:
    rated = table[table["exchange_rate"].notna()]
    values, low, high = (rated[n].to_numpy(np.float64) for n in RATES)
    at = np.arange(len(rated))
    bars = [np.clip(values - low, 0, None), np.clip(high - values, 0, None)]
    axes.axvline(1, color="#999999", linewidth=0.8, linestyle=(0, (4, 2)))
    axes.errorbar(values, at, xerr=bars, fmt="o", color=COLOURS[0], markersize=4, capsize=2)
    for place, rate, end in zip(at, values, np.maximum(high, 1), strict=True):
        axes.annotate(number(rate), (end, place), fontsize=6, color=COLOURS[0], **RATE_LABEL)
    axes.set_yticks(at, rated["objective"].tolist(), parse_math=False)
    axes.set(xscale="log", ylim=(len(rated) - 0.5, -0.5), xlabel="KL for the same gain, over sft's")
    axes.xaxis.set_major_formatter(lambda rate, _: number(rate))
    axes.xaxis.set_minor_formatter("")
    axes.margins(x=0.15)  # room for the number of the longest interval
    without = table[table["exchange_rate"].isna()]["objective"].tolist()
    title = f"no rate: {', '.join(without)}" if without else ""
    axes.set_title(shown(title), loc="left", fontsize=7, parse_math=False)
