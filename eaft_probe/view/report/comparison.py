"""How a report compares its scan with another one: the numbers of `compare`, in words and drawn.

Every number is one of `Comparison.summary()`, which the page holds as `compare --json` prints it.
"""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from eaft_probe.analysis.bootstrap import FEWEST, RESAMPLES
from eaft_probe.columns.groups import GROUPS
from eaft_probe.scans.scan import Scan
from eaft_probe.verbs.compare import compare
from eaft_probe.view.plots.chart import STYLE, Chart
from eaft_probe.view.plots.compare import compare as plot_compare
from eaft_probe.view.plots.landscape import landscape
from eaft_probe.view.report.largest_changes import largest_changes
from eaft_probe.view.report.page import Figure
from eaft_probe.view.report.selection import Record, last_part

DPI = 200  # of a figure 6.8 inches wide: 1,360 pixels, as wide as the page gets on dense screens
MEANINGS = {
    **GROUPS,
    **{f"{name}_share": meaning for name, meaning in GROUPS.items()},
    "mean_nll": "−logprob of a token, nats",
    "mean_entropy": "of a token, nats",
}
MOVED_ALT = (
    "Three panels. Where the tokens of A lie by probability of the label and entropy, with arrows "
    "to their mean place under B; the share learned less the share forgotten over the same plane; "
    "and both shares by group, which the tables have as numbers."
)
APART_ALT = (
    "The density of tokens by probability of the label and entropy: A at the left, B at the right, "
    "on one colour scale, each with its conflict region outlined."
)


def against(scan: Scan, other: Scan | str | Path, **settings: Any) -> Record:
    """The page's section on `scan` (A) and `other` (B), as JSON values.

    `settings` are those of `compare`, whose errors it raises.
    """
    comparison = compare(scan, other, **settings)
    summary = comparison.summary()
    a, b = comparison.a, comparison.b
    section = {
        "summary": summary,
        "scans": [_described(a), _described(b)],
        "meanings": MEANINGS,
        "reference": last_part(summary.get("reference") or "the reference"),
    }
    if comparison.by == "tokens":
        chart = plot_compare(a, b, delta=summary["delta"], by="tokens")
        more = "Arrows also show regression to the mean: of two unrelated models all point inwards."
        return section | {
            "cards": [card._asdict() for card in moved_cards(summary)],
            "figure": picture(chart, MOVED_ALT, more),
            "movers": largest_changes(comparison),
        }
    return section | {
        "cards": [card._asdict() for card in apart_cards(summary)],
        "figure": picture(landscape(a, b), APART_ALT),
    }


def _described(scan: Scan) -> Record:
    data, model = scan.manifest["data"]["source"], scan.manifest["model"]["name"]
    return {
        "title": f"{last_part(data)} under {last_part(model)}",
        "rule": str(scan.rule),
        "examples": scan.manifest["counts"]["examples"],
        "trained_tokens": scan.manifest["counts"]["trained_tokens"],
    }


def picture(chart: Chart, alt: str, more: str = "") -> Record:
    """The figure as a PNG without a background, its caption as text next to it."""
    caption = " ".join(chart.get_supxlabel().split())
    chart.supxlabel("")
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        chart.savefig(buffer, format="png", dpi=DPI, transparent=True, bbox_inches="tight")
    png = buffer.getvalue()
    return {
        "png": base64.b64encode(png).decode(),
        "width": int.from_bytes(png[16:20]),  # where the format has them: IHDR comes first
        "height": int.from_bytes(png[20:24]),
        "alt": alt,
        "caption": f"{caption} {more}".rstrip(),
    }


# --- in words ---


def moved_cards(summary: Mapping[str, Any]) -> list[Figure]:
    """The headline of a comparison token by token."""
    total, delta = summary["tokens"], f"{summary['delta']:.3g} nats"
    counts = {n: f"{summary[n]:,} of {total:,}" for n in ("learned", "unchanged", "forgotten")}
    names = ("a", "b", "resolved", "remaining", "new")
    a, b, resolved, remaining, new = (summary[f"conflicts_{n}"] for n in names)
    return [
        Figure(
            _percent(summary["learned_share"]),
            "of the tokens are learned under B",
            f"{counts['learned']}: log-probability up by more than {delta}.",
        ),
        Figure(
            _percent(summary["forgotten_share"]),
            "of the tokens are forgotten under B",
            f"{counts['forgotten']}: log-probability down by more than {delta}. "
            f"Unchanged: {counts['unchanged']}.",
        ),
        Figure(
            f"{resolved:,} of {a:,}" if a else "None",
            "conflicts under A are resolved under B"
            if a
            else "of the tokens is a conflict under A",
            f"{resolved:,} resolved, {remaining:,} remaining, {new:,} new: {b:,} under B.",
        ),
        Figure(
            f"{summary['nll_change']:+.3f} nats",
            "is the mean nll of B minus that of A",
            f"{summary['mean_nll_a']:.3f} under A, {summary['mean_nll_b']:.3f} under B.",
        ),
    ]


def apart_cards(summary: Mapping[str, Any]) -> list[Figure]:
    """The headline of a comparison of distributions."""
    conflicts, nll = (summary["quantities"][n] for n in ("conflict_share", "mean_nll"))
    times = "∞ times" if conflicts["a"] else "None"  # JSON has no infinity: no ratio over 0
    if conflicts["ratio"] is not None:
        times = f"{conflicts['ratio']:.3g} times"
    shares = f"{_percent(conflicts['a'])} of A's tokens, {_percent(conflicts['b'])} of B's."
    intervals = f"No intervals: both scans need at least {FEWEST} examples."
    if summary["intervals"]:
        intervals = f"Intervals: 95% of {RESAMPLES:,} resamples of the examples."
    return [
        Figure(
            times,
            "as frequent in A as in B are confident conflicts",
            shares + _interval(conflicts, "ratio"),
        ),
        Figure(
            f"{nll['difference']:+.3f} nats",
            "is the mean nll of A minus that of B",
            f"{nll['a']:.3f} in A, {nll['b']:.3f} in B." + _interval(nll, "difference"),
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
    return f" 95%: {low:.3g} to {'∞' if high is None else f'{high:.3g}'}."


def _percent(share: float) -> str:
    return f"{float(f'{100 * share:.3g}'):g}%"
