"""How a report compares its scan with another one: the numbers of `compare`, in words and drawn.

Every number is one of `Comparison.summary()`, which the page holds as `compare --json` prints it,
or one of the figure `plot compare`.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eaft_probe.analysis.bootstrap import FEWEST, RESAMPLES
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import CompareSettings
from eaft_probe.verbs.compare import Comparison, compare
from eaft_probe.view.labels import data_name, model_name
from eaft_probe.view.plots.compare import cells_and_groups
from eaft_probe.view.plots.landscape import FEW
from eaft_probe.view.report.data_sets import MEANINGS
from eaft_probe.view.report.largest_changes import largest_changes
from eaft_probe.view.report.page import Figure, number, percent, signed
from eaft_probe.view.report.planes import panel
from eaft_probe.view.report.selection import Record, last_part, rounded

CELL = [
    *("prob_from", "prob_to", "entropy_from", "entropy_to"),
    *("tokens", "learned_share", "forgotten_share"),
    *("mean_prob_a", "mean_prob_b", "mean_entropy_a", "mean_entropy_b"),
]


def against(
    scan: Scan, other: Scan | str | Path, settings: CompareSettings | None = None
) -> Record:
    """The page's section on `scan` (A) and `other` (B), as JSON values. Raises as `compare`."""
    comparison = compare(scan, other, **asdict(settings or CompareSettings()))
    summary = comparison.summary()
    section = {
        "summary": summary,
        "scans": [_described(comparison.a), _described(comparison.b)],
        "meanings": MEANINGS,
        "reference": last_part(summary.get("reference") or "the reference"),
    }
    if comparison.by == "tokens":
        return section | {
            "cards": [card._asdict() for card in moved_cards(summary)],
            "moves": _moves(comparison),
            "movers": largest_changes(comparison),
        }
    return section | {
        "cards": [card._asdict() for card in apart_cards(summary)],
        "planes": [panel(comparison.a), panel(comparison.b)],
    }


def _described(scan: Scan) -> Record:
    return {
        "title": f"{data_name(scan)} under {model_name(scan)}",
        "rule": str(scan.rule),
        "examples": scan.manifest["counts"]["examples"],
        "trained_tokens": scan.manifest["counts"]["trained_tokens"],
    }


def _moves(comparison: Comparison) -> Record:
    """Cell by cell of A's plane: tokens, their mean places under A and B, and what was learned."""
    delta = comparison.totals["delta"]
    frame = cells_and_groups(comparison.a, comparison.b, delta)
    cells = frame[frame["group"] == "cell"][CELL].to_dict("records")
    return {
        "cells": [rounded(cell) for cell in cells],
        "few": FEW,  # tokens, below which a cell has no mean
        "vocab_size": comparison.a.manifest["model"].get("vocab_size"),
    }


# --- in words ---


def moved_cards(summary: Mapping[str, Any]) -> list[Figure]:
    """The headline of a comparison token by token."""
    total, delta = summary["tokens"], f"{number(summary['delta'])} nats"
    counts = {n: f"{summary[n]:,} of {total:,}" for n in ("learned", "unchanged", "forgotten")}
    names = ("a", "b", "resolved", "remaining", "new")
    a, b, resolved, remaining, new = (summary[f"conflicts_{n}"] for n in names)
    return [
        Figure(
            percent(summary["learned_share"]),
            "of the tokens are learned under B",
            f"{counts['learned']}: log-probability up by more than {delta}.",
        ),
        Figure(
            percent(summary["forgotten_share"]),
            "of the tokens are forgotten under B",
            f"{counts['forgotten']}: log-probability down by more than {delta}. "
            f"Unchanged: {counts['unchanged']}.",
        ),
        Figure(
            f"{resolved:,} of {a:,}" if a else "None",
            f"conflict{'s' * (a != 1)} under A {'is' if resolved == 1 else 'are'} resolved under B"
            if a
            else "of the tokens is a conflict under A",
            f"{resolved:,} resolved, {remaining:,} remaining, {new:,} new: {b:,} under B.",
        ),
        Figure(
            f"{signed(summary['nll_change'])} nats",
            "is the mean nll of B minus that of A",
            "{} under A, {} under B.".format(*(number(summary[f"mean_nll_{s}"], 4) for s in "ab")),
        ),
    ]


def apart_cards(summary: Mapping[str, Any]) -> list[Figure]:
    """The headline of a comparison of distributions."""
    conflicts, nll = (summary["quantities"][n] for n in ("conflict_share", "mean_nll"))
    times, frequent = "None", "of the tokens is a confident conflict, in A or in B"
    if conflicts["ratio"] is not None:
        times = f"{number(conflicts['ratio'])} times"
        frequent = "as frequent in A as in B are confident conflicts"
    elif conflicts["a"]:  # JSON has no infinity: no ratio over 0
        times, frequent = "Only in A", "are there confident conflicts"
    shares = f"{percent(conflicts['a'])} of A's tokens, {percent(conflicts['b'])} of B's."
    intervals = f"No intervals: both scans need at least {FEWEST} examples."
    if summary["intervals"]:
        intervals = f"Intervals: 95% of {RESAMPLES:,} resamples of the examples."
    return [
        Figure(
            times,
            frequent,
            shares + _interval(conflicts, "ratio"),
        ),
        Figure(
            f"{signed(nll['difference'])} nats",
            "is the mean nll of A minus that of B",
            f"{number(nll['a'], 4)} in A, {number(nll['b'], 4)} in B."
            + _interval(nll, "difference"),
        ),
        Figure(
            f"{summary['examples_a']:,} and {summary['examples_b']:,}",
            "examples in A and in B",
            f"{summary['tokens_a']:,} and {summary['tokens_b']:,} tokens. {intervals}",
        ),
    ]


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = (row[f"{name}_{end}"] for end in ("low", "high"))
    if low is None:
        return " No interval."
    return f" 95%: {number(low)} to {'∞' if high is None else number(high)}."
