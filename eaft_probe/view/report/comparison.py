"""What a report says of its scan beside another one: the numbers of `compare`, in words and drawn.

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
from eaft_probe.verbs.compare import Comparison, compare
from eaft_probe.view.plots.chart import STYLE, Chart
from eaft_probe.view.plots.compare import compare as plot_compare
from eaft_probe.view.plots.landscape import landscape
from eaft_probe.view.report.largest_changes import movers
from eaft_probe.view.report.page import Figure
from eaft_probe.view.report.selection import last_part

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
    "on one scale of colour, each with its conflict region outlined."
)


def against(scan: Scan, other: Scan | str | Path, **settings: Any) -> dict[str, Any]:
    """The page's section on `scan` (A) and `other` (B), as JSON values.

    `settings` are those of `compare`, whose errors it raises.
    """
    found = compare(scan, other, **settings)
    summary = found.summary()
    drawn = _moved(found) if found.by == "tokens" else _apart(found)
    cards = moved_cards(summary) if found.by == "tokens" else apart_cards(summary)
    return {
        "summary": summary,
        "scans": [_described(found.a), _described(found.b)],
        "meanings": MEANINGS,
        "reference": last_part(summary.get("reference") or "the reference"),
        "cards": [card._asdict() for card in cards],
        **drawn,
    }


def _described(scan: Scan) -> dict[str, Any]:
    data, model = scan.manifest["data"]["source"], scan.manifest["model"]["name"]
    counts = {name: scan.manifest["counts"][name] for name in ("examples", "trained_tokens")}
    title = f"{last_part(data)} under {last_part(model)}"
    return {"title": title, "rule": str(scan.rule), **counts}


def _moved(found: Comparison) -> dict[str, Any]:
    chart = plot_compare(found.a, found.b, delta=found.totals["delta"], by="tokens")
    more = "Arrows show regression to the mean too: of two unrelated models all point inwards."
    return {"figure": picture(chart, MOVED_ALT, more), "movers": movers(found)}


def _apart(found: Comparison) -> dict[str, Any]:
    chart = landscape(found.a, found.b)
    more = "Dashed: the least and the most entropy there can be at a probability."
    return {"figure": picture(chart, APART_ALT, more)}


def picture(chart: Chart, alt: str, more: str) -> dict[str, Any]:
    """The figure as a PNG without a background, its caption as text beside it."""
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
        "caption": f"{caption} {more}",
    }


# --- in words ---


def moved_cards(found: Mapping[str, Any]) -> list[Figure]:
    """The headline of a comparison token by token."""
    total, delta = found["tokens"], f"{found['delta']:.3g} nats"
    counts = {n: f"{found[n]:,} of {total:,}" for n in ("learned", "unchanged", "forgotten")}
    return [
        Figure(
            _percent(found["learned_share"]),
            "of the tokens are learned under B",
            f"{counts['learned']}: log-probability up by more than {delta}.",
        ),
        Figure(
            _percent(found["forgotten_share"]),
            "of the tokens are forgotten under B",
            f"{counts['forgotten']}: log-probability down by more than {delta}. "
            f"{counts['unchanged']} are unchanged.",
        ),
        _resolved(found),
        _change(
            found["nll_change"],
            "is the mean nll of B less that of A",
            f"{found['mean_nll_a']:.3f} under A, {found['mean_nll_b']:.3f} under B.",
        ),
    ]


def _resolved(found: Mapping[str, Any]) -> Figure:
    names = ("a", "b", "resolved", "remaining", "new")
    a, b, resolved, remaining, new = (found[f"conflicts_{n}"] for n in names)
    return Figure(
        f"{resolved:,} of {a:,}" if a else "None",
        "conflicts under A are resolved under B" if a else "of the tokens is a conflict under A",
        f"{resolved:,} resolved, {remaining:,} remaining, {new:,} new: {b:,} under B.",
    )


def apart_cards(found: Mapping[str, Any]) -> list[Figure]:
    """The headline of a comparison of distributions."""
    conflicts, nll = (found["quantities"][n] for n in ("conflict_share", "mean_nll"))
    shares = f"{_percent(conflicts['a'])} of A's tokens, {_percent(conflicts['b'])} of B's."
    few = f"Too few for intervals: both scans need {FEWEST} examples."
    many = f"Intervals: 95% of {RESAMPLES:,} resamples of the examples."
    sides = f"{found['tokens_a']:,} and {found['tokens_b']:,} tokens."
    return [
        Figure(
            _times(conflicts),
            "as frequent in A as in B are confident conflicts",
            _between(conflicts, "ratio", shares),
        ),
        _change(
            nll["difference"],
            "is the mean nll of A less that of B",
            _between(nll, "difference", f"{nll['a']:.3f} in A, {nll['b']:.3f} in B."),
        ),
        Figure(
            f"{found['examples_a']:,} and {found['examples_b']:,}",
            "examples in A and in B",
            f"{sides} {many if found['intervals'] else few}",
        ),
    ]


def _times(row: Mapping[str, Any]) -> str:
    """JSON has no infinity: over a share of 0 there is no ratio."""
    if row["ratio"] is None:
        return "∞ times" if row["a"] else "None"
    return f"{row['ratio']:.3g} times"


def _change(value: float, label: str, detail: str) -> Figure:
    return Figure(f"{value:+.3f} nats", label, detail)


def _between(row: Mapping[str, Any], name: str, said: str) -> str:
    low, high = (row[f"{name}_{end}"] for end in ("low", "high"))
    if low is None:
        return f"{said} No interval."
    return f"{said} 95%: {low:.3g} to " + ("∞." if high is None else f"{high:.3g}.")


def _percent(share: float) -> str:
    return f"{float(f'{100 * share:.3g}'):g}%"
