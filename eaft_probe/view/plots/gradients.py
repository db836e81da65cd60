"""Gradient maps: mean gradient norm over the plane under any objective, without the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas
from matplotlib.axes import Axes
from numpy.typing import NDArray

from eaft_probe.analysis.histogram2d import CELLS, ENTROPY_BINS, PROB_BINS, cell, coarse
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput
from eaft_probe.objectives.gates import OBJECTIVES, objective, settable
from eaft_probe.objectives.gates.by_entropy import MaskedSft
from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.scan_columns import open_base, resolved, token_columns
from eaft_probe.scans.scan import Scan
from eaft_probe.view.plots.chart import (
    COLUMN,
    CONFLICT,
    YELLOW_PURPLE,
    Chart,
    caption,
    names,
    new_chart,
    opened,
    percent,
    tokens,
)
from eaft_probe.view.plots.full_gradients import compared
from eaft_probe.view.plots.landscape import (
    FOR_A_MEAN,
    bounds,
    ceiling,
    cells,
    draw_plane,
    grey,
    outline,
    step,
)

Norm = Literal["grad_logits", "grad_head", "grad_hidden", "full"]
DRAWN = ("sft", "eaft")
COARSER = 8  # a mean wants more tokens a cell than a count does


def gradients(
    *scans: Scan | str | Path,
    objective: Sequence[str | Objective] = DRAWN,
    norm: Norm = "grad_logits",
    set: Mapping[str, Any] | None = None,
    base_scan: str | Path | None = None,
) -> Chart:
    """Mean norm of gate · d nll over the plane, a panel for each objective: the paper's Fig. 3.

    The gate is computed from the scan's columns, batch statistics over the whole scan. One colour
    scale; cells with fewer than 5 tokens are grey. Beneath: the share of the total gradient mass
    (Σ gate · norm) that comes from conflicts.

    norm: grad_logits, grad_head or grad_hidden, a column of the scan; or "full": the exact norms
        of `eaft-probe gradients` beside these of the same tokens, under sft, of one scan.
    set: fields of the objectives, e.g. {"alpha": 2}. base_scan: for objectives that read one.
    Raises `MissingColumn`, `UnknownName`. Source: arXiv 2601.02151, Fig. 3.
    """
    found = opened(scans)
    if norm not in get_args(Norm):
        raise BadInput(f"--norm is one of {', '.join(get_args(Norm))}; found {norm!r}")
    if norm == "full":
        if len(found) > 1 or objective is not DRAWN or set or base_scan is not None:
            raise BadInput(
                "--norm full shows one scan under sft: it takes no --objective, --set "
                "or --base-scan"
            )
        return compared(found[0])
    wanted = chosen(objective, set)
    maps = [_map(s, o, norm, base_scan) for s in found for o in wanted]
    return _draw(found, wanted, maps, norm)


def chosen(given: Sequence[str | Objective], settings: Mapping[str, Any] | None) -> list[Objective]:
    """The objectives by name, each with those of the settings that it has."""
    if isinstance(given, str):
        given = [given]
    settings, kinds = settings or {}, [OBJECTIVES[o] for o in given if isinstance(o, str)]
    for key in settings:
        if not any(key in settable(kind) for kind in kinds):
            listed = {f for kind in kinds for f in settable(kind)}
            raise BadInput(
                f"--set {key}: no objective here has that field; they have "
                f"{', '.join(sorted(listed)) or 'none'}"
            )
    return [o if isinstance(o, Objective) else _with(o, settings) for o in given]


def _with(name: str, settings: Mapping[str, Any]) -> Objective:
    known = settable(OBJECTIVES[name])
    return objective(name, {k: v for k, v in settings.items() if k in known})


def said_of(wanted: Sequence[Objective]) -> str:
    """What a caption must say of objectives drawn from a scan."""
    stepwise = ", ".join(o.name for o in wanted if o.of_step)
    anchored = ", ".join(o.name for o in wanted if o.anchor)
    masks = [o for o in wanted if isinstance(o, MaskedSft) and o.conflicts == "live"]
    said = "".join(
        f"{o.name}: conflict where {ConflictRule(o.entropy_below, o.prob_below)}. " for o in masks
    )
    said += f"Batch statistics over the whole scan: {stepwise}. " if stepwise else ""
    return said + (f"The KL anchor of {anchored} is not drawn. " if anchored else "")


# --- the numbers ---


@dataclass(frozen=True)
class Map:
    """Gradient mass of a scan under an objective, and how many tokens lie where."""

    counts: NDArray[np.int64]  # (ENTROPY_BINS, PROB_BINS)
    mass: NDArray[np.float64]  # (ENTROPY_BINS, PROB_BINS) Σ gate · norm
    conflict_mass: float

    @property
    def conflict_share(self) -> float:
        total = float(self.mass.sum())
        return self.conflict_mass / total if total else 0.0


def _map(scan: Scan, wanted: Objective, norm: str, base_scan: str | Path | None) -> Map:
    base = open_base(base_scan)
    frozen, rule = resolved(wanted, scan, base), scan.rule
    counts, mass, conflict = np.zeros(CELLS, np.int64), np.zeros(CELLS), 0.0
    reads = sorted({*wanted.reads, norm, "prob", "entropy"})
    for columns in token_columns(scan, reads, base):
        norms = frozen(columns) * columns[norm] * columns["weight"]
        index = cell(columns)
        counts += np.bincount(index, columns["weight"], CELLS).astype(np.int64)
        mass += np.bincount(index, norms, CELLS)
        conflict += float(norms[rule(columns)].sum())
    square = (ENTROPY_BINS, PROB_BINS)
    return Map(counts.reshape(square), mass.reshape(square), conflict)


# --- the picture ---


def _draw(
    scans: Sequence[Scan], wanted: Sequence[Objective], maps: Sequence[Map], norm: str
) -> Chart:
    by = step(max(map(tokens, scans)) // COARSER)
    means = [_mean(m, by) for m in maps]
    titles = [(n, str(o)) for n in names(scans) for o in wanted]
    data = pandas.concat(
        [
            cells(
                {"tokens": coarse(m.counts, by), f"mean_{norm}": mean}, coarse(m.counts, by), by
            ).assign(scan=name, objective=label, conflict_share_of_gradient=m.conflict_share)
            for (name, label), m, mean in zip(titles, maps, means, strict=True)
        ]
    )
    note = f"{caption(scans)} {norm}: norm of gate · d nll. {said_of(wanted)}"
    note += f"Grey: fewer than {FOR_A_MEAN} tokens."
    return _panels(scans, wanted, maps, means, by, norm, data, note)


def _mean(found: Map, by: int) -> NDArray[np.float64]:
    counts = coarse(found.counts, by)
    with np.errstate(invalid="ignore"):
        return coarse(found.mass, by) / np.where(counts, counts, np.nan)


def _panels(
    scans: Sequence[Scan],
    wanted: Sequence[Objective],
    maps: Sequence[Map],
    means: Sequence[NDArray[np.float64]],
    by: int,
    norm: str,
    data: pandas.DataFrame,
    note: str,
) -> Chart:
    rows, across = len(scans), len(wanted)
    top = ceiling([m.counts for m in maps], 1)
    most = max((float(np.nanmax(m)) for m in means), default=0) or 1.0
    height = 2.6 * rows + 0.8 + 0.16 * rows * across
    with new_chart(max(COLUMN, 2.3 * across), height, data, note) as chart:
        grid = chart.add_gridspec(
            rows + 1, across, height_ratios=[*[1] * rows, 0.11 * rows * across]
        )
        panels = []
        for i, (found, mean) in enumerate(zip(maps, means, strict=True)):
            axes = chart.add_subplot(grid[i // across, i % across])
            image = draw_plane(axes, mean, by, top, cmap=YELLOW_PURPLE, vmin=0, vmax=most)
            grey(axes, coarse(found.counts, by), by, top)
            bounds(axes, scans[i // across], top)
            outline(axes, scans[i // across], "")
            head = f"{names(scans)[i // across]}\n" if rows > 1 else ""
            axes.set_title(f"{head}{wanted[i % across]}", loc="left", parse_math=False)
            panels.append(axes)
        chart.colorbar(image, ax=panels, aspect=30, pad=0.02).set_label(f"mean {norm}")
        _shares(chart.add_subplot(grid[rows, :]), scans, wanted, maps)
    return chart


def _shares(
    axes: Axes, scans: Sequence[Scan], wanted: Sequence[Objective], maps: Sequence[Map]
) -> None:
    several = len(scans) > 1
    short = [n if len(n) <= 14 else n[:13] + "…" for n in names(scans)]  # leaves room for bars
    labels = [f"{n}: {o}" if several else str(o) for n in short for o in wanted]
    shares = [100 * m.conflict_share for m in maps]
    bars = axes.barh(range(len(shares)), shares, color=CONFLICT, height=0.6)
    axes.bar_label(bars, [percent(s / 100) for s in shares], padding=2, fontsize=7)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.invert_yaxis()
    axes.set(
        xlabel="share of gradient mass from conflicts (%)", xlim=(0, max([*shares, 1e-3]) * 1.25)
    )
