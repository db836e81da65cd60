"""A scan in numbers: what `show` prints. Nothing is counted here, see `counted.py`."""

import math
from collections.abc import Sequence
from typing import Any

from eaft_probe.analysis.aggregates import Counted, OfTotals, Overall, counted
from eaft_probe.columns.quantiles import TOO_LOW
from eaft_probe.errors import BadInput, ScanError
from eaft_probe.scans.manifest import SUMS
from eaft_probe.scans.part_writer import CONFLICTS
from eaft_probe.scans.rejections import reasons
from eaft_probe.scans.scan import Scan

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_PAIRS = 15


def summarize(scan: Scan) -> dict[str, Any]:
    """What `show` prints and `--json` gives. Shares are of scored tokens, nll in nats a token."""
    whole, counts = counted(scan), scan.manifest["counts"]
    overall = _sound(scan, whole.overall())
    return {
        "path": scan.place,
        "model": scan.manifest["model"]["name"],
        "data": scan.manifest["data"]["source"],
        "rule": {**scan.rule.as_dict(), "text": str(scan.rule)},
        "rows": counts["rows"],
        "examples": counts["examples"],
        "rejected": counts["rejected"],
        "rejected_reasons": reasons(scan),
        "cut_examples": counts["cut_examples"],
        **{name: counts.get(name, {}) for name in SUMS},
        "closed": counts.get("closed", 0),
        "not_shown": counts.get("not_shown", 0),
        "tokens": counts["tokens"],
        "trained_tokens": overall.tokens,
        **({} if scan.keeps_all else {"kept_tokens": _kept_tokens(scan)}),
        "conflicts": overall.conflicts,
        "conflict_share": overall.conflicts / overall.tokens,
        "examples_with_conflicts": whole.examples_with_conflicts(),
        "mean_nll": overall.mean_nll,
        "mean_entropy": overall.mean_entropy,
        "entropy_quantiles": _quantiles(whole, "entropy"),
        "prob_quantiles": _quantiles(whole, "prob"),
        "pairs": _dicts(("token", "top1", "conflicts"), whole.pairs(MOST_PAIRS)),
        "roles": _dicts(("role", "trained_tokens", "conflicts"), whole.roles()),
        "classes": _dicts(("class", "trained_tokens", "conflicts"), whole.classes()),
        "kept": {
            name: _dicts(("value", "examples", "examples_with_conflicts"), whole.kept(name))
            for name in whole.kept_columns()
        },
    }


def _sound(scan: Scan, overall: Overall) -> Overall:
    """Raises `BadInput` where there is no token, `ScanError` where a scan's files contradict each
    other."""
    if not overall.tokens:
        raise BadInput(f"{scan.place} holds no scored tokens")
    ((listed,),) = scan.rows("SELECT count(*) FROM conflicts")
    sampled = scan.keep_tokens.startswith("sample")
    if (listed > overall.conflicts or (listed < overall.conflicts and not sampled)) or not (
        math.isfinite(overall.mean_nll) and math.isfinite(overall.mean_entropy)
    ):
        raise ScanError(
            f"{scan.path} is damaged: {overall.conflicts:,} of its tokens are conflicts, "
            f"{CONFLICTS} lists {listed:,}; mean nll {overall.mean_nll:g}"
        )
    return overall


def _kept_tokens(scan: Scan) -> dict[str, object]:
    """What of the scan is there token by token, and how far its totals may lie from exact."""
    return {
        "keep": scan.keep_tokens,
        "tokens": scan.kept,
        "quantiles_too_low": TOO_LOW,
        "pairs_too_low": OfTotals(scan).pairs_too_low,
    }


def _dicts(names: Sequence[str], rows: Sequence[tuple[object, ...]]) -> list[dict[str, object]]:
    return [dict(zip(names, row, strict=False)) for row in rows]


def _quantiles(whole: Counted, column: str) -> dict[str, float]:
    return dict(zip(map(str, QUANTILES), whole.quantiles(column, QUANTILES), strict=True))


def worst_examples(scan: Scan, most: int) -> list[int]:
    """The rows with the most conflicts in all of their turns, the larger share first among
    equals."""
    query = """
        SELECT example FROM
          (SELECT example, sum(trained_tokens) AS trained FROM examples GROUP BY example) JOIN
          (SELECT example, count(*) AS n FROM conflicts GROUP BY example) USING (example)
        ORDER BY n DESC, n / trained DESC, example LIMIT ?"""
    return [row[0] for row in scan.rows(query, [most])]
