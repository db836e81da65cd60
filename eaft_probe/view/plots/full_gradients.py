"""`plot gradients --norm full`: exact whole-model gradient norms next to the closed forms."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm
from matplotlib.figure import SubFigure
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import NDArray

from eaft_probe.analysis.bootstrap import FEWEST
from eaft_probe.analysis.exact_gradients import FullGradients
from eaft_probe.analysis.histogram2d import cell
from eaft_probe.analysis.rank_correlation import CLOSED, EXACT, MEASURES, WEIGHT, means
from eaft_probe.analysis.stratified_sample import BY
from eaft_probe.quantities import counted_noun, number, percent
from eaft_probe.scans.scan import Scan
from eaft_probe.view.labels import caption
from eaft_probe.view.plots.chart import COLOURS, CONFLICT, YELLOW_PURPLE, Chart, new_chart
from eaft_probe.view.plots.plane import BOUNDS, FOR_A_MEAN, Grid, draw_plane, grey, guides

Floats = NDArray[np.float64]
SUFFIXES = {"value": "", "low": "_low", "high": "_high"}  # of a measure's columns in the data


def compared(scan: Scan) -> Chart:
    """Maps of the exact norm and the closed forms of the same tokens, and how well they agree.

    Each map is in multiples of its norm's mean over the scan, so that one scale serves all.
    Below: tokens sampled and the mean's 95 % interval in each cell, rank correlations with the
    exact norm, and the conflicts' share of the gradient mass. Raises `ScanError`.
    """
    sample = FullGradients.open(scan)
    maps = Maps.of(sample, BY)
    if 2 * (maps.sampled >= FOR_A_MEAN).sum() < (maps.tokens > 0).sum():
        maps = Maps.of(sample, 2 * BY)  # a mean in at least half of the cells, if that helps
    agreement, sampled = sample.agreement(), counted_noun(len(sample.table), "sampled token")
    note = (
        f"{caption([scan])} {sampled}, each counted for the tokens it was drawn for, from cells "
        f"with {percent(sample.covered, digits=2)} of all. Grey: fewer than {FOR_A_MEAN}. "
        f"Bars: 95 % intervals over at least {FEWEST} examples. {BOUNDS}"
    )
    return _draw(maps, agreement, _data(maps, agreement), note)


# --- the numbers ---


@dataclass(frozen=True)
class Maps:
    """The sample in the cells of a grid."""

    scan: Scan
    grid: Grid
    tokens: NDArray[np.int64]  # (R, C) of the scan
    sampled: NDArray[np.int64]  # (R, C) of the sample
    mean: Mapping[str, Floats]  # (R, C) of each norm
    half: Mapping[str, Floats]  # (R, C) half of the mean's 95 % interval
    overall: Mapping[str, float]  # mean over the scan, as far as the sample represents it

    @classmethod
    def of(cls, sample: FullGradients, by: int) -> "Maps":
        """In cells of `by` × `by` of the plane's finest."""
        table, grid = sample.table, Grid.whole(by)
        index = cell({n: table[n].to_numpy() for n in ("prob", "entropy")}, by)
        norms = {n: table[n].to_numpy() for n in (EXACT, *CLOSED) if n in table}
        weight = table[WEIGHT].to_numpy()
        sampled, intervals = means(index, list(norms.values()), weight, math.prod(grid.shape))
        mean, half = (
            {n: pair[i].reshape(grid.shape) for n, pair in zip(norms, intervals, strict=True)}
            for i in (0, 1)
        )
        overall = {
            n: float(np.average(x.astype(np.float64), weights=weight)) for n, x in norms.items()
        }
        return cls(
            sample.scan,
            grid,
            grid.counts(sample.scan),
            sampled.reshape(grid.shape),
            mean,
            half,
            overall,
        )


def _data(maps: Maps, agreement: pandas.DataFrame) -> pandas.DataFrame:
    """A row for each norm and cell with a token, and the norm's agreement next to it."""
    frames = []
    for norm, mean in maps.mean.items():
        values = {
            "tokens": maps.tokens,
            "sampled": maps.sampled,
            "mean": mean,
            "low": mean - maps.half[norm],
            "high": mean + maps.half[norm],
        }
        frame = maps.grid.frame(values, maps.tokens)
        frames.append(frame.assign(norm=norm, mean_of_all=maps.overall[norm]))
    measured = agreement.pivot(index="norm", columns="measure", values=list(SUFFIXES))
    measured = measured[[(column, m) for m in MEASURES for column in SUFFIXES]]
    measured.columns = [f"{measure}{SUFFIXES[column]}" for column, measure in measured.columns]
    return pandas.concat(frames, ignore_index=True).join(measured, on="norm")


# --- the picture ---


def _draw(maps: Maps, agreement: pandas.DataFrame, data: pandas.DataFrame, note: str) -> Chart:
    top = maps.grid.top([maps.tokens])
    with new_chart(max(7.2, 2.3 * len(maps.mean)), 5.2, data, note) as chart:
        upper, lower = chart.subfigures(2, 1, squeeze=False, height_ratios=(1.08, 1))[:, 0]
        _norms(upper, maps, top)
        panels = lower.subplots(1, 4, width_ratios=(1.1, 1.1, 1, 1))
        _sampled(lower, panels[0], maps, top)
        _widths(lower, panels[1], maps, top)
        _correlations(panels[2], agreement)
        _shares(panels[3], agreement)
    return chart


def _norms(figure: SubFigure, maps: Maps, top: float) -> None:
    """A panel for each norm, in multiples of its mean, on one scale."""
    ratios = [
        np.where(maps.sampled >= FOR_A_MEAN, mean, np.nan) / (maps.overall[norm] or 1)
        for norm, mean in maps.mean.items()
    ]
    finite = np.concatenate([r[np.isfinite(r)] for r in ratios])
    scale = {"vmin": 0, "vmax": float(finite.max(initial=1.0)), "cmap": YELLOW_PURPLE}
    panels = figure.subplots(1, len(ratios), sharey=True, squeeze=False)[0]
    for axes, norm, ratio in zip(panels, maps.mean, ratios, strict=True):
        image = draw_plane(axes, ratio, maps.grid, top, **scale)
        grey(axes, maps.sampled, maps.grid, top)
        guides(axes, maps.scan, maps.grid, top)
        axes.set_title(f"{norm}: mean {number(maps.overall[norm])}", loc="left")
        axes.label_outer()
    label = "cell's mean / mean of all"
    figure.colorbar(image, ax=list(panels), aspect=25, pad=0.02, label=label)


def _sampled(figure: SubFigure, axes: Axes, maps: Maps, top: float) -> None:
    counts = np.where(maps.sampled, maps.sampled, np.nan)
    norm = LogNorm(1, max(10, maps.sampled.max()))
    bar = _map(figure, axes, maps, top, counts, "tokens", norm=norm, cmap="viridis_r")
    bar.ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_title("sampled", loc="left")


def _widths(figure: SubFigure, axes: Axes, maps: Maps, top: float) -> None:
    with np.errstate(invalid="ignore", divide="ignore"):
        width = 100 * maps.half[EXACT] / maps.mean[EXACT]
    width = np.where(maps.sampled >= FOR_A_MEAN, width, np.nan)
    label = "95 % interval, ± % of the mean"
    _map(figure, axes, maps, top, width, label, vmin=0, vmax=100, cmap="cividis_r")
    grey(axes, maps.sampled, maps.grid, top)
    axes.set_title(f"{EXACT}: how certain", loc="left")
    axes.set_ylabel("")


def _map(
    figure: SubFigure, axes: Axes, maps: Maps, top: float, values: Floats, label: str, **style: Any
) -> Colorbar:
    image = draw_plane(axes, values, maps.grid, top, **style)
    guides(axes, maps.scan, maps.grid, top)
    extend = "max" if (values > style.get("vmax", math.inf)).any() else "neither"
    return figure.colorbar(
        image, ax=axes, location="bottom", aspect=18, pad=0.02, extend=extend, label=label
    )


def _correlations(axes: Axes, agreement: pandas.DataFrame) -> None:
    """Beside each closed form its rank correlation with the exact norm, all and conflicts."""
    for measure, name, colour, shift in (
        ("rank_correlation", "all", COLOURS[0], -0.12),
        ("conflict_rank_correlation", "conflicts", CONFLICT, 0.12),
    ):
        rows = agreement[agreement["measure"] == measure]
        _dots(axes, rows, shift, colour, "{:.2f}", f"{name} ({rows['sampled'].iloc[0]:,})")
    least = np.nanmin([0.0, *agreement.loc[agreement["measure"] != "conflict_share", "low"]])
    axes.set(xlim=(least - 0.05, 1.03), xlabel=f"rank correlation\nwith {EXACT}")
    axes.axvline(0, color="#bbbbbb", linewidth=0.6, zorder=0)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.1, 1), borderpad=0, handletextpad=0.1)


def _shares(axes: Axes, agreement: pandas.DataFrame) -> None:
    rows = agreement[agreement["measure"] == "conflict_share"]
    rows = rows.assign(**{n: 100 * rows[n] for n in SUFFIXES})
    _dots(axes, rows, 0, CONFLICT, "{:.2g}", "")
    most = float(np.nanmax([1, *rows["high"], *rows["value"]]))
    axes.set(xlim=(0, 1.08 * most), xlabel="conflicts' share of\ngradient mass (%)")


def _dots(
    axes: Axes, rows: pandas.DataFrame, shift: float, colour: str, form: str, label: str
) -> None:
    """A value with its interval for each row, the first at the top."""
    value, low, high = (rows[n].to_numpy(np.float64) for n in SUFFIXES)
    places = np.arange(len(rows))
    axes.hlines(places + shift, low, high, color=colour, linewidth=1.2)
    axes.plot(value, places + shift, "o", color=colour, markersize=3.5, label=label)
    for x, y in zip(value, places + shift, strict=True):
        if np.isfinite(x):
            axes.annotate(
                form.format(x),
                (x, y),
                xytext=(0, 3),
                textcoords="offset points",
                fontsize=6,
                ha="center",
                color=colour,
            )
    axes.set_yticks(places, [n.removeprefix("grad_") for n in rows["norm"]])
    axes.set_ylim(len(rows) - 0.5, -0.5)
