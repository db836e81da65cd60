"""The tokens that two scans of the same data disagree on most, in their text.

One pass over both scans; of each piece only the furthest are held, so memory grows with neither.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas

from eaft_probe.scans.scan import Scan
from eaft_probe.verbs.compare import Comparison, moved
from eaft_probe.view.report.selection import IN_CONTEXT, or_null, rounded, rows

MOST = 20  # of each kind
KINDS = {"forgotten": 1, "learned": -1}  # change times this rises from the furthest on
NUMBERS = ("prob_a", "prob_b", "entropy_a", "entropy_b")


def movers(found: Comparison) -> dict[str, list[dict[str, Any]]]:
    """The worst forgotten and the best learned tokens, at most 20 of each, the furthest first.

    `change` is the log-probability under B less that under A, nats; ties go by place.
    """
    held, key = {kind: pandas.DataFrame() for kind in KINDS}, found.a.token_key
    for mine, values in moved(found.a, found.b, found.totals["delta"]):
        piece = values.assign(
            **{name: mine[name] for name in key},
            conflict_a=found.rule(mine),
            change=values["nll_a"] - values["nll_b"],
        )
        for kind, frame in held.items():
            among = pandas.concat([frame, piece[piece[kind] > 0]])
            held[kind] = _furthest(among, KINDS[kind], key)
    texts = _texts(found, [place for frame in held.values() for place in _places(frame, key)])
    return {kind: _described(frame, texts, key) for kind, frame in held.items()}


def _furthest(frame: pandas.DataFrame, sign: int, key: Sequence[str]) -> pandas.DataFrame:
    near = frame.assign(order=sign * frame["change"]).nsmallest(MOST, "order", keep="all")
    return near.sort_values(["order", *key])[:MOST].drop(columns="order")


Place = tuple[int, ...]  # a token's, by its key


def _places(frame: pandas.DataFrame, key: Sequence[str]) -> Iterable[Place]:
    return map(tuple, frame[list(key)].to_numpy(np.int64).tolist())


def _described(
    frame: pandas.DataFrame, texts: dict[Place, dict[str, Any]], key: Sequence[str]
) -> list[dict[str, Any]]:
    made = []
    for place, row in zip(_places(frame, key), frame.to_dict("records"), strict=True):
        numbers = {name: rounded(row[name]) for name in ("change", *NUMBERS)}
        flags = {name: bool(row[name]) for name in ("conflict_a", "conflict_b")}
        made.append({**dict(zip(key, place, strict=True)), **numbers, **flags, **texts[place]})
    return made


def _texts(found: Comparison, places: list[Place]) -> dict[Place, dict[str, Any]]:
    """Each token in A's text, and what either model would have said."""
    if not places:
        return {}
    names = ["before", "token", "after", "top1_a", "top1_prob_a"]
    join = f"JOIN examples USING ({', '.join(found.a.example_key)})"
    texts = _looked_up(found.a, places, f"{IN_CONTEXT}, ", join, names)
    choices = _looked_up(found.b, places, "", "", ["top1_b", "top1_prob_b"])
    return {place: {**texts[place], **choices[place]} for place in places}


def _looked_up(
    scan: Scan, places: list[Place], select: str, join: str, names: list[str]
) -> dict[Place, dict[str, Any]]:
    key, values = ", ".join(scan.token_key), ", ".join(map(str, places))
    query = f"""
        WITH places({key}) AS (VALUES {values})
        SELECT ({key}), {select}{or_null(scan, "top1")}, {or_null(scan, "top1_prob")}
        FROM places JOIN tokens USING ({key}) {join}"""
    return {
        place: dict(zip(names, map(rounded, row), strict=True)) for place, *row in rows(scan, query)
    }
