"""A scan in numbers: counts and groups by DuckDB over the parts, quantiles exactly."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from eaft_probe.columns.table import CONFLICTS, Scan
from eaft_probe.errors import BadInput, ScanError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_PAIRS, MOST_VALUES = 15, 10


def summarize(scan: Scan) -> dict[str, Any]:
    """What `show` prints and `--json` gives. Shares are of scored tokens, nll in nats a token.

    Every number comes out of core: memory does not grow with the scan.
    """
    total, conflicts, nll, entropy = _row(
        scan,
        "SELECT count(*), count(*) FILTER (conflict), avg(-CAST(logprob AS DOUBLE)), "
        "avg(CAST(entropy AS DOUBLE)) FROM tokens",
    )
    if not total:
        raise BadInput(f"{scan.path} holds no scored tokens")
    flagged, listed = _row(scan, "SELECT count(DISTINCT example), count(*) FROM conflicts")
    if listed != conflicts or not (math.isfinite(nll) and math.isfinite(entropy)):
        raise ScanError(f"{scan.path} is damaged: {conflicts:,} of its tokens are conflicts, "
                        f"{listed:,} in {CONFLICTS}; mean nll {nll:g}")  # fmt: skip
    counts = scan.manifest["counts"]
    return {
        "path": str(scan.path),
        "model": scan.manifest["model"]["name"],
        "data": scan.manifest["data"]["source"],
        "rule": {**asdict(scan.rule), "text": str(scan.rule)},
        "rows": counts["rows"],
        "examples": counts["examples"],
        "rejected": counts["rejected"],
        "cut_examples": counts["cut_examples"],
        "tokens": counts["tokens"],
        "trained_tokens": total,
        "conflicts": conflicts,
        "conflict_share": conflicts / total,
        "examples_with_conflicts": flagged,
        "mean_nll": nll,
        "mean_entropy": entropy,
        "entropy_quantiles": _quantiles(scan, "entropy"),
        "prob_quantiles": _quantiles(scan, "prob"),
        "pairs": _pairs(scan),
        "roles": _roles(scan),
        "classes": _classes(scan),
        "kept": {name: _kept(scan, name) for name in kept_columns(scan)},
    }


def _row(scan: Scan, query: str) -> tuple[Any, ...]:
    (found,) = scan.rows(query)
    return found


def _dicts(scan: Scan, query: str, names: Sequence[str]) -> list[dict[str, Any]]:
    return [dict(zip(names, row, strict=True)) for row in scan.rows(query)]


def _quantiles(scan: Scan, column: str) -> dict[str, float]:
    return dict(zip(map(str, QUANTILES), scan.quantiles(column, QUANTILES), strict=True))


def _pairs(scan: Scan) -> list[dict[str, Any]]:
    """The commonest (label, model's choice) among the conflicts."""
    query = (
        "SELECT token, top1, count(*) AS n FROM conflicts GROUP BY token, top1 "
        f"ORDER BY n DESC, token, top1 LIMIT {MOST_PAIRS}"
    )
    return _dicts(scan, query, ("token", "top1", "conflicts"))


def _roles(scan: Scan) -> list[dict[str, Any]]:
    """Trained tokens and conflicts by the role of their message; "text" where there is none."""
    query = """
        SELECT coalesce(json_extract_string(messages, '$[' || turn || '].role'), 'text') AS role,
               CAST(sum(n) AS BIGINT), CAST(sum(c) AS BIGINT)
        FROM (SELECT example, turn, count(*) AS n, count(*) FILTER (conflict) AS c
              FROM tokens GROUP BY example, turn)
        JOIN examples USING (example) GROUP BY role ORDER BY role"""
    return _dicts(scan, query, ("role", "trained_tokens", "conflicts"))


def token_class(token: str, special: frozenset[str]) -> str:
    """What kind of text a token is.

    >>> [token_class(t, frozenset(["</s>"])) for t in ("</s>", " \\n", " 42", ".", " and")]
    ['end of turn', 'white space', 'digits', 'punctuation', 'words']
    """
    if token in special:
        return "end of turn"
    if not token.strip():
        return "white space"
    if re.search(r"\d", token) and not re.search(r"[^\W\d_]", token):
        return "digits"
    return "words" if re.search(r"\w", token) else "punctuation"


def _classes(scan: Scan) -> list[dict[str, Any]]:
    """Trained tokens and conflicts by class of the label: grouped by text first, at most V rows."""
    special = frozenset(scan.manifest["special_tokens"])
    totals, conflicts = Counter[str](), Counter[str]()
    rows = scan.rows(
        "SELECT CAST(token AS VARCHAR), count(*), count(*) FILTER (conflict) FROM tokens GROUP BY 1"
    )
    for token, total, flagged in rows:
        kind = token_class(token or "", special)
        totals[kind] += total
        conflicts[kind] += flagged
    return [
        {"class": kind, "trained_tokens": totals[kind], "conflicts": conflicts[kind]}
        for kind in sorted(totals)
    ]


def kept_columns(scan: Scan) -> list[str]:
    """The pass-through columns with few enough values to group by."""
    query = 'SELECT count(DISTINCT "{}") FROM examples'
    return [
        n
        for n in scan.manifest["config"]["keep"]
        if 0 < _row(scan, query.format(_name(n)))[0] <= MOST_VALUES
    ]


def _kept(scan: Scan, name: str) -> list[dict[str, Any]]:
    """Examples and examples with a conflict, by the value of a pass-through column."""
    column = f'"{_name(name)}"'
    query = f"""
        SELECT {column}, count(*), count(*) FILTER (example IN (SELECT example FROM conflicts))
        FROM examples GROUP BY 1 ORDER BY 1"""
    return _dicts(scan, query, ("value", "examples", "examples_with_conflicts"))


def _name(column: str) -> str:
    return column.replace('"', '""')


def worst_examples(scan: Scan, most: int) -> list[int]:
    """The examples with the most conflicts, the larger share first among equals."""
    query = """
        SELECT example FROM examples JOIN
          (SELECT example, count(*) AS n FROM conflicts GROUP BY example) USING (example)
        ORDER BY n DESC, n / trained_tokens DESC, example LIMIT ?"""
    return [row[0] for row in scan.rows(query, [most])]
