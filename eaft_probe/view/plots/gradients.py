"""Gradient maps: mean gradient norm over the plane under any objective, without the model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas
from matplotlib.axes import Axes
from numpy.typing import NDArray

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput
from eaft_probe.objectives.gates import chosen_objectives
from eaft_probe.objectives.gates.by_entropy import MaskedSft
from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.scan_columns import open_base, resolved, token_columns
from eaft_probe.quantities import percent
from eaft_probe.scans.scan import Scan
from eaft_probe.view.labels import caption, names
from eaft_probe.view.plots.chart import (
    CONFLICT,
    YELLOW_PURPLE,
    Chart,
    new_chart,
    open_scans,
    plot,
    rows_and_columns,
    token_count,
    width_of,
)
from eaft_probe.view.plots.full_gradients import compared
from eaft_probe.view.plots.plane import (
    BOUNDS,
    FOR_A_MEAN,
    Grid,
    Zoom,
    draw_plane,
    grey,
    guides,
    step,
)

Arrays = Mapping[str, NDArray[Any]]
Norm = Literal["grad_logits", "grad_head", "grad_hidden", "full"]
DERIVATIVES = {
    "grad_logits": "d nll / d logits",
    "grad_head": "d nll / d W_head",
    "grad_hidden": "d nll / d h",
}
DRAWN = ("sft", "eaft")
COARSER = 8  # a mean needs more tokens in a cell than a count does


@plot
def gradients(
    *scans: Scan | str | Path,
    objective: Sequence[str | Objective] = DRAWN,
    norm: Norm = "grad_logits",
    set: Mapping[str, object] | None = None,
    base_scan: str | Path | None = None,
    zoom: Zoom | None = None,
) -> Chart:
    """Mean norm of gate · d nll over the plane, a panel for each objective: the paper's Fig. 3.

    The gate is computed from the scan's columns, batch statistics over the whole scan. One colour
    scale; cells with fewer than 5 tokens are grey. Below: the share of the total gradient mass
    (Σ gate · norm) that comes from conflicts.

    norm: grad_logits, grad_head or grad_hidden, a column of the scan; or "full": the exact norms
        of `eaft-probe gradients` next to these of the same tokens, under sft, of one scan.
    set: fields of the objectives, e.g. {"alpha": 2}. base_scan: for objectives that read one.
    zoom: "conflicts", as in `landscape`.
    Raises `MissingColumn`, `UnknownName`. Source: arXiv 2601.02151, Fig. 3.
    """
    opened = open_scans(scans)
    if norm not in get_args(Norm):
        raise BadInput(f"--norm is one of {', '.join(get_args(Norm))}; found {norm!r}")
    if norm == "full":
        if len(opened) > 1 or objective is not DRAWN or set or base_scan is not None or zoom:
            raise BadInput(
                "--norm full shows one scan under sft: it takes no --objective, --set, "
                "--base-scan or --zoom"
            )
        return compared(opened[0])
    objectives = chosen_objectives(objective, set)
    grid = Grid.of(opened, step(max(map(token_count, opened)) // COARSER), zoom)
    maps = [
        _map(grid, s, name, o, norm, base_scan)
        for s, name in zip(opened, names(opened), strict=True)
        for o in objectives
    ]
    note = f"{caption(opened)} {norm}: norm of gate · {DERIVATIVES[norm]}. "
    note += objective_notes(objectives)
    note += f"Grey: fewer than {FOR_A_MEAN} tokens. {BOUNDS}"
    return _draw(grid, maps, len(opened), norm, note)


def objective_notes(objectives: Sequence[Objective]) -> str:
    """What a caption must say about objectives drawn from a scan."""
    stepwise = ", ".join(o.name for o in objectives if o.of_step)
    anchored = ", ".join(o.name for o in objectives if o.anchor)
    notes = [
        f"{o.name}: conflict where {ConflictRule(o.entropy_below, o.prob_below)}. "
        for o in objectives
        if isinstance(o, MaskedSft) and o.conflicts == "live"
    ]
    if stepwise:
        notes.append(f"Batch statistics over the whole scan: {stepwise}. ")
    if anchored:
        notes.append(f"The KL anchor of {anchored} is not drawn. ")
    return "".join(notes)


# --- the numbers ---


def gated(
    scan: Scan, objective: Objective, base_scan: str | Path | None, reads: Sequence[str]
) -> Iterator[tuple[NDArray[Any], Arrays]]:
    """The gates of the tokens, float64, and their columns `reads` and `weight`; out of core."""
    base = open_base(base_scan)
    gate = resolved(objective, scan, base)
    for columns in token_columns(scan, sorted({*objective.reads, *reads}), base):
        yield gate(columns).astype(np.float64), columns


@dataclass(frozen=True)
class Map:
    """Gradient mass of a scan under an objective, and how many tokens lie where."""

    scan: Scan
    name: str  # of the scan
    label: str  # of the objective
    counts: NDArray[np.int64]  # (R, C)
    mass: NDArray[np.float64]  # (R, C) Σ gate · norm
    conflict_mass: float
    total_mass: float

    @property
    def conflict_share(self) -> float:
        return self.conflict_mass / self.total_mass if self.total_mass else 0.0

    @property
    def mean(self) -> NDArray[np.float64]:
        """(R, C) mean norm; NaN where there is no token."""
        return self.mass / np.where(self.counts, self.counts, np.nan)


def _map(
    grid: Grid,
    scan: Scan,
    name: str,
    objective: Objective,
    norm: str,
    base_scan: str | Path | None,
) -> Map:
    reads = sorted({norm, "logprob", "prob", "entropy", *scan.rule.reads})
    counts, mass, conflict, total = np.zeros(grid.shape), np.zeros(grid.shape), 0.0, 0.0
    for gate, columns in gated(scan, objective, base_scan, reads):
        norms = gate * columns[norm] * columns["weight"]
        counts += grid.sums(columns, columns["weight"])
        mass += grid.sums(columns, norms)
        conflict += float(norms[scan.rule(columns)].sum())
        total += float(norms.sum())
    return Map(scan, name, str(objective), counts.astype(np.int64), mass, conflict, total)


# --- the picture ---


def _draw(grid: Grid, maps: Sequence[Map], scans: int, norm: str, note: str) -> Chart:
    """A row of panels for each scan, a column for each objective, at most three in a row; below, a
    bar for each panel."""
    objectives, top = len(maps) // scans, grid.top([m.counts for m in maps])
    data = pandas.concat([_cells(m, grid, norm) for m in maps])
    most = float(data[f"mean_{norm}"].max()) or 1.0
    lines, across = rows_and_columns(objectives)
    rows, bars = lines * scans, 0.24 + 0.14 * len(maps)
    with new_chart(width_of(across), 2.5 * rows + bars + 0.5, data, note) as chart:
        cells = chart.add_gridspec(rows + 1, across, height_ratios=[*[2.5] * rows, bars])
        panels = []
        for i, shown in enumerate(maps):
            scan, place = divmod(i, objectives)
            axes = chart.add_subplot(cells[scan * lines + place // across, place % across])
            image = draw_plane(axes, shown.mean, grid, top, cmap=YELLOW_PURPLE, vmin=0, vmax=most)
            grey(axes, shown.counts, grid, top)
            guides(axes, shown.scan, grid, top)
            head = f"{'' if place else shown.name}\n" if scans > 1 else ""  # over its rows
            axes.set_title(f"{head}{shown.label}", loc="left", parse_math=False)
            panels.append(axes)
        chart.colorbar(image, ax=panels, aspect=25 * rows, pad=0.02, label=f"mean {norm}")
        _shares(chart.add_subplot(cells[rows, :]), maps, scans > 1)
    return chart


def _cells(shown: Map, grid: Grid, norm: str) -> pandas.DataFrame:
    values = {"tokens": shown.counts, f"mean_{norm}": shown.mean}
    return grid.frame(values, shown.counts).assign(
        scan=shown.name,
        objective=shown.label,
        conflict_share_of_gradient=shown.conflict_share,
    )


def _shares(axes: Axes, maps: Sequence[Map], several_scans: bool) -> None:
    short = [m.name if len(m.name) <= 22 else m.name[:21] + "…" for m in maps]  # room for bars
    labels = [
        f"{name}: {m.label}" if several_scans else m.label
        for name, m in zip(short, maps, strict=True)
    ]
    shares = [100 * m.conflict_share for m in maps]
    bars = axes.barh(range(len(shares)), shares, color=CONFLICT, height=0.6)
    axes.bar_label(bars, [percent(s / 100, digits=2) for s in shares], padding=2, fontsize=7)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.invert_yaxis()
    axes.set(
        xlabel="share of gradient mass from conflicts (%)", xlim=(0, max([*shares, 1e-3]) * 1.25)
    )
