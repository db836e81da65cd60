"""What objectives would do to a data set before any training: their gates, by group of tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from numpy.typing import NDArray

from eaft_probe.columns.groups import GROUPS, READS, groups
from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.scan_columns import open_base, resolved, token_columns
from eaft_probe.scans.scan import Scan
from eaft_probe.view.plots.chart import GROUP_COLOURS, Chart, caption, names, new_chart, opened
from eaft_probe.view.plots.gradients import chosen, said_of

BINS, LARGEST = 200, 4.0  # of the gates' histogram; what is larger counts as largest
SHARES = ("loss_removed", "gradient_removed")
SUMS = ("tokens", "nll", "gated_nll", "gradient", "gated_gradient", "gate")


def gates(
    *scans: Scan | str | Path,
    objective: Sequence[str | Objective] = ("sft", "eaft"),
    set: Mapping[str, Any] | None = None,
    base_scan: str | Path | None = None,
) -> Chart:
    """The share of loss and gradient mass that each objective takes away, by group of tokens.

    Left: the cumulative distribution of the gate. Right: 1 − Σ gate · nll / Σ nll and the same
    of `grad_logits`; negative where gates above 1 add. Groups overlap: conflict (the rule), low
    (entropy ≤ 0.5 nats), high (≥ 2.0 nats), agreeing (rank 0), all. `data` is the table.

    Arguments as in `gradients`.
    """
    found, wanted = opened(scans), chosen(objective, set)
    made = [_sums(scan, o, base_scan) for scan in found for o in wanted]
    titles = [(name, str(o)) for name in names(found) for o in wanted]
    tables = [_table(m, *t) for m, t in zip(made, titles, strict=True)]
    data = pandas.concat(tables, ignore_index=True)
    note = (
        f"{caption(found)} {said_of(wanted)}Groups overlap: "
        + "; ".join(f"{name}: {meaning}" for name, meaning in GROUPS.items())
        + "."
    )
    with new_chart(6.8, 1.0 + 1.35 * len(made), data, note) as chart:
        panels = chart.subplots(len(made), 2, squeeze=False, sharex="col")
        for (left, right), sums, table, title in zip(panels, made, tables, titles, strict=True):
            _distribution(left, sums["histogram"])
            _removed(right, table)
            head = ": ".join(title) if len(found) > 1 else title[1]
            left.set_title(head, loc="left", parse_math=False)
        _frame(panels, tables, max(_last(m["histogram"]) for m in made))
    return chart


def _frame(panels: NDArray[Any], tables: Sequence[pandas.DataFrame], last: float) -> None:
    """One range for all rows, with room for the numbers at the bars' ends."""
    panels[0, 0].legend(fontsize=6, loc="best", labelspacing=0.2)
    panels[-1, 0].set(xlabel="gate", xlim=(0, max(1.02, last)))
    shares = np.nan_to_num(np.concatenate([t[list(SHARES)].to_numpy().ravel() for t in tables]))
    low, high = 100 * min(shares.min(), 0), 100 * max(shares.max(), 0)
    room = 0.3 * max(high - low, 1)
    panels[-1, 1].set(xlabel="share taken away (%)", xlim=(low - (room if low else 0), high + room))


def _sums(scan: Scan, wanted: Objective, base_scan: str | Path | None) -> dict[str, NDArray[Any]]:
    """sums (groups, SUMS) and histogram (groups, BINS) of the gates, out of core."""
    base = open_base(base_scan)
    frozen, rule = resolved(wanted, scan, base), scan.rule
    sums, histogram = np.zeros((len(GROUPS), len(SUMS))), np.zeros((len(GROUPS), BINS))
    reads = sorted({*wanted.reads, *READS, "logprob", "grad_logits"})
    for columns in token_columns(scan, reads, base):
        gate = frozen(columns).astype(np.float64)
        nll, gradient = -columns["logprob"], columns["grad_logits"]
        weight = columns["weight"]
        values = weight * np.stack([gate**0, nll, gate * nll, gradient, gate * gradient, gate])
        places = np.minimum((gate * (BINS / LARGEST)).astype(int), BINS - 1)
        for i, mask in enumerate(groups(columns, rule).values()):
            sums[i] += values[:, mask].sum(1)
            histogram[i] += np.bincount(places[mask], weight[mask], BINS)
    return {"sums": sums, "histogram": histogram}


def _table(made: Mapping[str, NDArray[Any]], scan: str, title: str) -> pandas.DataFrame:
    """A row a group; shares are NaN where the group has no token."""
    frame = pandas.DataFrame(made["sums"], columns=list(SUMS))
    frame["tokens"] = frame["tokens"].astype(np.int64)
    return pandas.DataFrame(
        {
            "scan": scan,
            "objective": title,
            "group": list(GROUPS),
            "tokens": frame["tokens"],
            "mean_gate": frame["gate"] / frame["tokens"].where(frame["tokens"] > 0),
            "loss_removed": _taken(frame["gated_nll"], frame["nll"]),
            "gradient_removed": _taken(frame["gated_gradient"], frame["gradient"]),
        }
    )


def _taken(gated: pandas.Series, whole: pandas.Series) -> pandas.Series:
    return 1 - gated / whole.where(whole != 0)


def _distribution(axes: Axes, histogram: NDArray[np.float64]) -> None:
    edges = np.linspace(0, LARGEST, BINS + 1)
    for name, counts in zip(GROUPS, histogram, strict=True):
        if counts.sum():
            share = np.concatenate([[0], np.cumsum(counts) / counts.sum()])
            axes.step(edges, share, color=GROUP_COLOURS[name], label=name, where="pre")
    axes.set(ylim=(0, 1.02), ylabel="share of\ntokens below")


def _last(histogram: NDArray[np.float64]) -> float:
    """The end of the last bin with a gate in it."""
    return float(np.flatnonzero(histogram.sum(0))[-1] + 1) * LARGEST / BINS


def _removed(axes: Axes, table: pandas.DataFrame) -> None:
    places = np.arange(len(table))
    colours = [GROUP_COLOURS[group] for group in table["group"]]
    for shift, column, alpha in ((-0.2, "loss_removed", 1.0), (0.2, "gradient_removed", 0.5)):
        shares = 100 * table[column].to_numpy()
        bars = axes.barh(places + shift, np.nan_to_num(shares), 0.36, color=colours, alpha=alpha)
        word = column.removesuffix("_removed")
        said = ["no tokens" if np.isnan(s) else f"{word} {s:.3g}" for s in shares]
        axes.bar_label(bars, said, padding=2, fontsize=5.5)
    axes.set_yticks(places, table["group"])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.6)
