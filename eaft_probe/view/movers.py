"""The tokens that two scans of the same data disagree on most, in their text.

One pass over both scans; of each piece only the furthest are held, so memory grows with neither.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas

from eaft_probe.columns.table import Scan
from eaft_probe.verbs.compare import Comparison, moved
from eaft_probe.view.chosen import IN_CONTEXT, or_null, rounded, rows

MOST = 20  # of each kind
KINDS = {"forgotten": 1, "learned": -1}  # change times this rises from the furthest on
NUMBERS = ("prob_a", "prob_b", "entropy_a", "entropy_b")
PLACE = ("example", "position")


def movers(found: Comparison) -> dict[str, list[dict[str, Any]]]:
    """The worst forgotten and the best learned tokens, at most 20 of each, the furthest first.

    `change` is the log-probability under B less that under A, nats; ties go by place.
    """
    held = {kind: pandas.DataFrame() for kind in KINDS}
    for mine, values in moved(found.a, found.b, found.totals["delta"]):
        piece = values.assign(
            **{name: mine[name] for name in PLACE},
            conflict_a=found.rule(mine),
            change=values["nll_a"] - values["nll_b"],
        )
        for kind, frame in held.items():
            held[kind] = _furthest(pandas.concat([frame, piece[piece[kind] > 0]]), KINDS[kind])
    texts = _texts(found, [place for frame in held.values() for place in _places(frame)])
    return {kind: _described(frame, texts) for kind, frame in held.items()}


def _furthest(frame: pandas.DataFrame, sign: int) -> pandas.DataFrame:
    near = frame.assign(order=sign * frame["change"]).nsmallest(MOST, "order", keep="all")
    return near.sort_values(["order", *PLACE])[:MOST].drop(columns="order")


Place = tuple[int, int]


def _places(frame: pandas.DataFrame) -> Iterable[Place]:
    return ((int(e), int(p)) for e, p in frame[list(PLACE)].to_numpy(np.int64))


def _described(frame: pandas.DataFrame, texts: dict[Place, dict[str, Any]]) -> list[dict[str, Any]]:
    made = []
    for place, row in zip(_places(frame), frame.to_dict("records"), strict=True):
        numbers = {name: rounded(row[name]) for name in ("change", *NUMBERS)}
        flags = {name: bool(row[name]) for name in ("conflict_a", "conflict_b")}
        made.append({**dict(zip(PLACE, place, strict=True)), **numbers, **flags, **texts[place]})
    return made


def _texts(found: Comparison, places: list[Place]) -> dict[Place, dict[str, Any]]:
    """Each token in A's text, and what either model would have said."""
    if not places:
        return {}
    names = ["before", "token", "after", "top1_a", "top1_prob_a"]
    texts = _looked_up(found.a, places, f"{IN_CONTEXT}, ", "JOIN examples USING (example)", names)
    choices = _looked_up(found.b, places, "", "", ["top1_b", "top1_prob_b"])
    return {place: {**texts[place], **choices[place]} for place in places}


def _looked_up(
    scan: Scan, places: list[Place], select: str, join: str, names: list[str]
) -> dict[Place, dict[str, Any]]:
    values = ", ".join(map(str, places))
    query = f"""
        WITH places(example, position) AS (VALUES {values})
        SELECT example, position, {select}{or_null(scan, "top1")}, {or_null(scan, "top1_prob")}
        FROM places JOIN tokens USING (example, position) {join}"""
    return {
        (row[0], row[1]): dict(zip(names, map(rounded, row[2:]), strict=True))
        for row in rows(scan, query)
    }
