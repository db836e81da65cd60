"""`plot gradients --norm full`: exact whole-model gradient norms beside the closed forms."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import NDArray

from eaft_probe.analysis.bootstrap import FEWEST
from eaft_probe.analysis.exact_gradients import FullGradients
from eaft_probe.analysis.histogram2d import ENTROPY_BINS, PROB_BINS, cell, plane
from eaft_probe.analysis.rank_correlation import CLOSED, EXACT, MEASURES, WEIGHT, means
from eaft_probe.analysis.stratified_sample import BY
from eaft_probe.scans.scan import Scan
from eaft_probe.view.plots.chart import (
    COLOURS,
    CONFLICT,
    YELLOW_PURPLE,
    Chart,
    caption,
    new_chart,
    percent,
)
from eaft_probe.view.plots.landscape import (
    FOR_A_MEAN,
    bounds,
    ceiling,
    cells,
    draw_plane,
    grey,
    outline,
)

Floats = NDArray[np.float64]


def compared(scan: Scan) -> Chart:
    """Maps of the exact norm and the closed forms of the same tokens, and how well they agree.

    Each map is in multiples of its norm's mean over the scan, so that one scale serves all.
    Beneath: tokens sampled and the mean's 95 % interval in each cell, rank correlations with the
    exact norm, and the conflicts' share of the gradient mass. Raises `ScanError`.
    """
    found = Maps(FullGradients.open(scan), BY)
    if 2 * (found.sampled >= FOR_A_MEAN).sum() < (found.tokens > 0).sum():
        found = Maps(found.sample, 2 * BY)  # a mean in half of the cells at least, if that helps
    agreed = found.sample.agreement()
    note = (
        f"{caption([scan])} {len(found.sample.table):,} sampled tokens, each counted for the "
        f"tokens it was drawn for, from cells with {percent(found.sample.covered)} of all. "
        f"Grey: fewer than {FOR_A_MEAN}. Bars: 95 % intervals over examples, of which there "
        f"must be {FEWEST}."
    )
    return _draw(found, agreed, _data(found, agreed), note)


# --- the numbers ---


@dataclass(frozen=True)
class Maps:
    """The sample in cells of `by` × `by` of the plane's finest."""

    sample: FullGradients
    by: int

    @property
    def norms(self) -> list[str]:
        return [EXACT, *(n for n in CLOSED if n in self.sample.table)]

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """(R, C) tokens of the scan."""
        return plane(self.sample.scan).coarse(self.by)

    @property
    def sampled(self) -> NDArray[np.int64]:
        """(R, C) tokens of the sample."""
        return self._means[0]

    def mean(self, norm: str) -> tuple[Floats, Floats]:
        """(R, C) mean of a norm, and half of its 95 % interval."""
        return self._means[1][self.norms.index(norm)]

    def overall(self, norm: str) -> float:
        """The mean over the scan, as far as the sample stands for it."""
        table = self.sample.table
        return float(np.average(table[norm].astype(np.float64), weights=table[WEIGHT]))

    @cached_property
    def _means(self) -> tuple[NDArray[np.int64], list[tuple[Floats, Floats]]]:
        table, shape = self.sample.table, (ENTROPY_BINS // self.by, PROB_BINS // self.by)
        up, across = np.divmod(
            cell({n: table[n].to_numpy() for n in ("prob", "entropy")}), PROB_BINS
        )
        index = up // self.by * shape[1] + across // self.by
        values = [table[n].to_numpy() for n in self.norms]
        n, made = means(index, values, table[WEIGHT].to_numpy(), shape[0] * shape[1])
        return n.reshape(shape), [(m.reshape(shape), h.reshape(shape)) for m, h in made]


def _data(found: Maps, agreed: pandas.DataFrame) -> pandas.DataFrame:
    """A row for each norm and cell with a token, and the norm's agreement beside it."""
    frames = []
    for norm in found.norms:
        mean, half = found.mean(norm)
        values = {
            "tokens": found.tokens,
            "sampled": found.sampled,
            "mean": mean,
            "low": mean - half,
            "high": mean + half,
        }
        frame = cells(values, found.tokens, found.by).assign(
            norm=norm, mean_of_all=found.overall(norm)
        )
        mine = agreed[agreed["norm"] == norm].set_index("measure")
        said = {
            f"{m}{end}": float(mine[column].get(m, np.nan))
            for m in MEASURES
            for end, column in (("", "value"), ("_low", "low"), ("_high", "high"))
        }
        frames.append(frame.assign(**said))
    return pandas.concat(frames, ignore_index=True)


# --- the picture ---


def _draw(found: Maps, agreed: pandas.DataFrame, data: pandas.DataFrame, note: str) -> Chart:
    top, across = ceiling([found.tokens], found.by), len(found.norms)
    with new_chart(max(7.2, 2.3 * across), 5.2, data, note) as chart:
        upper, lower = chart.subfigures(2, 1, squeeze=False, height_ratios=(1.08, 1))[:, 0]
        _maps(upper, found, top)
        panels = lower.subplots(1, 4, width_ratios=(1.1, 1.1, 1, 1))
        _sampled(lower, panels[0], found, top)
        _widths(lower, panels[1], found, top)
        _correlations(panels[2], agreed, found.norms[1:])
        _shares(panels[3], agreed, found.norms)
    return chart


def _maps(figure: Any, found: Maps, top: float) -> None:
    """A panel for each norm, in multiples of its mean, on one scale."""
    ratios = [
        np.where(found.sampled >= FOR_A_MEAN, found.mean(n)[0], np.nan) / (found.overall(n) or 1)
        for n in found.norms
    ]
    known = np.concatenate([r[np.isfinite(r)] for r in ratios])
    most = float(known.max(initial=1.0))
    panels = figure.subplots(1, len(found.norms), sharey=True, squeeze=False)[0]
    for axes, norm, ratio in zip(panels, found.norms, ratios, strict=True):
        image = draw_plane(axes, ratio, found.by, top, cmap=YELLOW_PURPLE, vmin=0, vmax=most)
        _dressed(axes, found, top)
        axes.set_title(f"{norm}: mean {found.overall(norm):.3g}", loc="left")
        if axes is not panels[0]:
            axes.set_ylabel("")
    bar = figure.colorbar(image, ax=list(panels), aspect=25, pad=0.02)
    bar.set_label("cell's mean / mean of all")


def _dressed(axes: Axes, found: Maps, top: float) -> None:
    grey(axes, found.sampled, found.by, top)
    bounds(axes, found.sample.scan, top)
    outline(axes, found.sample.scan, "")


def _sampled(figure: Any, axes: Axes, found: Maps, top: float) -> None:
    counts = np.where(found.sampled, found.sampled, np.nan)
    norm = LogNorm(1, max(10, found.sampled.max()))
    image = draw_plane(axes, counts, found.by, top, norm=norm, cmap="viridis_r")
    bounds(axes, found.sample.scan, top)
    outline(axes, found.sample.scan, "")
    axes.set_title("sampled", loc="left")
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=18, pad=0.02)
    bar.ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    bar.set_label("tokens")


def _widths(figure: Any, axes: Axes, found: Maps, top: float) -> None:
    mean, half = found.mean(EXACT)
    with np.errstate(invalid="ignore", divide="ignore"):
        width = np.where(found.sampled >= FOR_A_MEAN, 100 * half / mean, np.nan)
    image = draw_plane(axes, width, found.by, top, vmin=0, vmax=100, cmap="cividis_r")
    _dressed(axes, found, top)
    axes.set_title(f"{EXACT}: how certain", loc="left")
    axes.set_ylabel("")
    extend = "max" if (width > 100).any() else "neither"
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=18, pad=0.02, extend=extend)
    bar.set_label("95 % interval, ± % of the mean")


def _correlations(axes: Axes, agreed: pandas.DataFrame, norms: Sequence[str]) -> None:
    """Beside each closed form its rank correlation with the exact norm, all and conflicts."""
    shown = (
        ("rank_correlation", "all", COLOURS[0]),
        ("conflict_rank_correlation", "conflicts", CONFLICT),
    )
    for i, (measure, name, colour) in enumerate(shown):
        mine = agreed[agreed["measure"] == measure]
        label = f"{name} ({mine['sampled'].iloc[0]:,})"
        up = [n + 0.24 * i - 0.12 for n in range(len(norms))]
        _dots(axes, mine, up, colour, "{:.2f}", label)
    least = float(np.nanmin([0.0, *agreed.loc[agreed["measure"] != "conflict_share", "low"]]))
    axes.set(xlim=(least - 0.05, 1.03), xlabel=f"rank correlation\nwith {EXACT}")
    axes.axvline(0, color="#bbbbbb", linewidth=0.6, zorder=0)
    _named(axes, norms)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.1, 1), borderpad=0, handletextpad=0.1)


def _shares(axes: Axes, agreed: pandas.DataFrame, norms: Sequence[str]) -> None:
    mine = agreed[agreed["measure"] == "conflict_share"]
    mine = mine.assign(**{n: 100 * mine[n] for n in ("value", "low", "high")})
    _dots(axes, mine, list(range(len(norms))), CONFLICT, "{:.2g}", "")
    most = float(np.nanmax([1, *mine["high"], *mine["value"]]))
    axes.set(xlim=(0, 1.08 * most), xlabel="conflicts' share of\ngradient mass (%)")
    _named(axes, norms)


def _dots(
    axes: Axes, rows: pandas.DataFrame, up: Sequence[float], colour: str, form: str, label: str
) -> None:
    value, low, high = (rows[n].to_numpy(np.float64) for n in ("value", "low", "high"))
    axes.hlines(up, low, high, color=colour, linewidth=1.2)
    axes.plot(value, up, "o", color=colour, markersize=3.5, label=label)
    for x, y in zip(value, up, strict=True):
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


def _named(axes: Axes, norms: Sequence[str]) -> None:
    axes.set_yticks(range(len(norms)), [n.removeprefix("grad_") for n in norms])
    axes.set_ylim(len(norms) - 0.5, -0.5)
