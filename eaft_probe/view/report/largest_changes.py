"""The tokens that two scans of the same data disagree on most, in their text.

One pass over both scans; of each piece only the furthest are held, so memory grows with neither.
"""

from collections.abc import Sequence

import pandas

from eaft_probe.scans.scan import Scan
from eaft_probe.verbs.compare import Comparison, token_changes
from eaft_probe.view.report.selection import IN_CONTEXT, Record, available, rounded, struct

MOST = 20  # of each kind
KINDS = {"forgotten": 1, "learned": -1}  # change times this rises from the furthest on
NUMBERS = ["change", "prob_a", "prob_b", "entropy_a", "entropy_b"]
FLAGS = ["conflict_a", "conflict_b"]
Place = tuple[int, ...]  # a token's, by its key


def largest_changes(comparison: Comparison) -> dict[str, list[Record]]:
    """The worst forgotten and the best learned tokens, at most 20 of each, the furthest first.

    `change` is the log-probability under B less that under A, nats; ties go by place.
    """
    furthest, key = {kind: pandas.DataFrame() for kind in KINDS}, list(comparison.a.token_key)
    for columns, values in token_changes(comparison.a, comparison.b, comparison.totals["delta"]):
        piece = values.assign(
            **{name: columns[name] for name in key},
            conflict_a=comparison.rule(columns),
            change=values["nll_a"] - values["nll_b"],
        )
        for kind, frame in furthest.items():
            candidates = pandas.concat([frame, piece[piece[kind] > 0]])
            furthest[kind] = _furthest(candidates, KINDS[kind], key)
    return {kind: _in_context(frame, comparison) for kind, frame in furthest.items()}


def _furthest(frame: pandas.DataFrame, sign: int, key: Sequence[str]) -> pandas.DataFrame:
    near = frame.assign(order=sign * frame["change"]).nsmallest(MOST, "order", keep="all")
    return near.sort_values(["order", *key])[:MOST].drop(columns="order")


def _in_context(frame: pandas.DataFrame, comparison: Comparison) -> list[Record]:
    """Each token in A's text, its numbers, and what either model would have said."""
    key = list(comparison.a.token_key)
    rows = frame.astype(dict.fromkeys(key, int) | dict.fromkeys(FLAGS, bool))
    tokens = [rounded(row) for row in rows[[*key, *NUMBERS, *FLAGS]].to_dict("records")]
    places = [tuple(token[name] for name in key) for token in tokens]
    join = f"JOIN examples USING ({', '.join(comparison.a.example_key)})"
    in_a = _looked_up(comparison.a, places, "a", IN_CONTEXT, join)
    in_b = _looked_up(comparison.b, places, "b", {}, "")
    return [t | in_a[place] | in_b[place] for t, place in zip(tokens, places, strict=True)]


def _looked_up(
    scan: Scan, places: Sequence[Place], side: str, columns: dict[str, str], join: str
) -> dict[Place, Record]:
    """Columns and the model's choice at each place."""
    if not places:
        return {}
    key = ", ".join(scan.token_key)
    choice = available(scan, "top1", "top1_prob")
    token = struct(**columns, **{f"{name}_{side}": value for name, value in choice.items()})
    query = f"""
        WITH places({key}) AS (VALUES {", ".join(map(str, places))})
        SELECT {key}, {token} FROM places JOIN tokens USING ({key}) {join}"""
    return {tuple(place): rounded(token) for *place, token in scan.rows(query)}
