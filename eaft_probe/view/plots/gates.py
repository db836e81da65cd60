"""What objectives would do to a data set before any training: their gates, by group of tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas
from matplotlib.axes import Axes
from numpy.typing import NDArray

from eaft_probe.columns.groups import GROUP_COLUMNS, GROUPS, groups
from eaft_probe.objectives.gates import chosen_objectives
from eaft_probe.objectives.objective import Objective
from eaft_probe.quantities import percent
from eaft_probe.scans.scan import Scan
from eaft_probe.view.labels import caption, names
from eaft_probe.view.plots.chart import (
    GROUP_COLOURS,
    PAGE,
    Chart,
    new_chart,
    no_axes,
    open_scans,
    plot,
)
from eaft_probe.view.plots.gradients import gated, objective_notes

Floats = NDArray[np.float64]
BINS, LARGEST = 200, 4.0  # of the gates' histogram; a larger gate counts as the largest
SHARES = ["loss_removed", "gradient_removed"]
SUMS = ["tokens", "nll", "gated_nll", "gradient", "gated_gradient", "gate"]


@plot
def gates(
    *scans: Scan | str | Path,
    objective: Sequence[str | Objective] = ("sft", "eaft"),
    set: Mapping[str, object] | None = None,
    base_scan: str | Path | None = None,
) -> Chart:
    """The share of loss and gradient mass that each objective takes away, by group of tokens.

    Left: the cumulative distribution of the gate. Right: 1 − Σ gate · nll / Σ nll and the same
    of `grad_logits`; negative where gates above 1 add. Groups overlap: conflict (the rule), low
    (entropy ≤ 0.5 nats), high (≥ 2.0 nats), agreeing (rank 0), all. `data` is the table.

    Arguments as in `gradients`.
    """
    opened, objectives = open_scans(scans), chosen_objectives(objective, set)
    labels = [(name, str(o)) for name in names(opened) for o in objectives]
    sums = [_sums(scan, o, base_scan) for scan in opened for o in objectives]
    tables = [_table(s, *label) for (s, _), label in zip(sums, labels, strict=True)]
    data = pandas.concat(tables, ignore_index=True)
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in GROUPS.items())
    note = f"{caption(opened)} {objective_notes(objectives)}Groups overlap: {meanings}."
    with new_chart(PAGE, 1.0 + 1.35 * len(sums), data, note, is_table=True) as chart:
        panels = chart.subplots(len(sums), 2, squeeze=False, sharex="col")
        for (left, right), (_, histogram), table, label in zip(
            panels, sums, tables, labels, strict=True
        ):
            _distribution(left, histogram)
            _removed(right, table)
            title = ": ".join(label[len(opened) == 1 :])
            left.set_title(title, loc="left", parse_math=False)
        _limit(panels, data, np.sum([histogram for _, histogram in sums], axis=0))
    return chart


def _limit(panels: NDArray[np.object_], data: pandas.DataFrame, histogram: Floats) -> None:
    """One range for all rows, with room for the numbers at the ends of the bars."""
    panels[0, 0].legend(fontsize=6, loc="best", labelspacing=0.2)
    last = float(np.flatnonzero(histogram.sum(0))[-1] + 1) * LARGEST / BINS
    panels[-1, 0].set(xlabel="gate", xlim=(0, max(1.02, last)))
    shares = 100 * np.nan_to_num(data[SHARES].to_numpy())
    low, high = shares.min(initial=0), shares.max(initial=0)
    room = 0.45 * max(high - low, 1)
    panels[-1, 1].set(xlabel="share taken away (%)", xlim=(low - (room if low else 0), high + room))


def _sums(scan: Scan, objective: Objective, base_scan: str | Path | None) -> tuple[Floats, Floats]:
    """sums (groups, SUMS) and histogram (groups, BINS) of the gates, out of core."""
    sums, histogram = np.zeros((len(GROUPS), len(SUMS))), np.zeros((len(GROUPS), BINS))
    reads = sorted({*GROUP_COLUMNS, *scan.rule.reads, "logprob", "grad_logits"})
    for gate, columns in gated(scan, objective, base_scan, reads):
        nll, gradient, weight = -columns["logprob"], columns["grad_logits"], columns["weight"]
        values = weight * np.stack([gate**0, nll, gate * nll, gradient, gate * gradient, gate])
        bins = np.minimum((gate * (BINS / LARGEST)).astype(int), BINS - 1)
        for i, mask in enumerate(groups(columns, scan.rule).values()):
            sums[i] += values[:, mask].sum(1)
            histogram[i] += np.bincount(bins[mask], weight[mask], BINS)
    return sums, histogram


def _table(sums: Floats, scan: str, objective: str) -> pandas.DataFrame:
    """A row for each group; shares are NaN if the group has no token."""
    frame = pandas.DataFrame(sums, columns=SUMS)
    whole = frame.where(frame != 0)
    return pandas.DataFrame(
        {
            "scan": scan,
            "objective": objective,
            "group": list(GROUPS),
            "tokens": frame["tokens"].astype(np.int64),
            "mean_gate": frame["gate"] / whole["tokens"],
            "loss_removed": 1 - frame["gated_nll"] / whole["nll"],
            "gradient_removed": 1 - frame["gated_gradient"] / whole["gradient"],
        }
    )


def _distribution(axes: Axes, histogram: Floats) -> None:
    edges = np.linspace(0, LARGEST, BINS + 1)
    for name, counts in zip(GROUPS, histogram, strict=True):
        if counts.sum():
            share = np.concatenate([[0], np.cumsum(counts) / counts.sum()])
            axes.step(edges, share, color=GROUP_COLOURS[name], label=name, where="pre")
    axes.set(ylim=(0, 1.02), ylabel="share of\ntokens below")


def _removed(axes: Axes, table: pandas.DataFrame) -> None:
    if not table[SHARES].fillna(0).to_numpy().any():
        no_axes(axes, "takes nothing away")
        return
    places = np.arange(len(table))
    colours = [GROUP_COLOURS[group] for group in table["group"]]
    for shift, column, alpha in ((-0.2, "loss_removed", 1.0), (0.2, "gradient_removed", 0.5)):
        shares = 100 * table[column].to_numpy()
        bars = axes.barh(places + shift, np.nan_to_num(shares), 0.36, color=colours, alpha=alpha)
        word = column.removesuffix("_removed")
        labels = [
            "no tokens" if np.isnan(s) else f"{word} {percent(s / 100, digits=2)}".replace("-", "−")
            for s in shares
        ]
        axes.bar_label(bars, labels, padding=2, fontsize=5.5)
    axes.set_yticks(places, table["group"])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.6)
