"""What a forecast says, on the page of its scan: in words, by objective, and drawn.

Every number is one of forecast.parquet or of the figure `plot forecast`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from eaft_probe.quantities import counted_noun
from eaft_probe.scans.alignment import finished_forecast, forecast_table, how_made
from eaft_probe.scans.scan import Scan
from eaft_probe.view.plots.forecast import alignment_grid, alignment_plane
from eaft_probe.view.plots.plane import FOR_A_MEAN
from eaft_probe.view.report.page import Figure, number, percent, signed
from eaft_probe.view.report.selection import Record, rounded

FIGURES = ("gain", "retain_nll_change", "retain_kl", "exchange_rate")
Row = Mapping[str, Any]


def forecast(scan: Scan) -> Record | None:
    """The page's section on a scan's forecast, as JSON values; None where it has none."""
    made = finished_forecast(scan.path)
    if made is None:
        return None
    rows = [_plain(row) for row in forecast_table(scan.path).to_dict("records")]
    return {
        "made": how_made(made),
        "cards": [card._asdict() for card in _cards(scan, rows)],
        "objectives": [_described(row) for row in rows],
        "plane": _plane(scan),
    }


def _plain(row: Row) -> Record:
    """A row of the table with None for what is missing."""
    missing = [n for n, v in row.items() if isinstance(v, float) and math.isnan(v)]
    return {**row, **dict.fromkeys(missing)}


def _described(row: Row) -> Record:
    """An objective's figures, each with the ends of its interval, and what they say."""
    return {
        "name": row["objective"],
        "words": in_words(row),
        **{n: [row[n], row[f"{n}_low"], row[f"{n}_high"]] for n in FIGURES},
    }


def _plane(scan: Scan) -> Record:
    """The cells of the plane, with the mean alignment of their tokens."""
    grid = alignment_grid([scan])
    counts, mean = alignment_plane(scan, grid)
    cells = grid.frame({"tokens": counts, "alignment": mean}, counts).to_dict("records")
    return {
        "cells": [rounded(cell) for cell in cells],
        "few": FOR_A_MEAN,  # tokens, below which a cell has no mean
        "vocab_size": scan.manifest["model"].get("vocab_size"),
    }


# --- in words ---


def in_words(row: Row) -> str:
    """What one step along an objective does, as far as the intervals tell."""
    if row["gain"] is None:
        return "Does nothing: its gates are 0 on all tokens of the step."
    held = _way(row, "gain", "rises", "falls")
    retained = _way(row, "retain_nll_change", "falls", "rises")
    return f"The held-out nll {held}, the retained nll {retained}. {_price(row)}{_note(row)}"


def _way(row: Row, name: str, down: str, up: str) -> str:
    """What happens where a figure is below 0, or above; where its interval holds 0, either."""
    if row[f"{name}_low"] > 0:
        return up
    return down if row[f"{name}_high"] < 0 else "may go either way"


def _price(row: Row) -> str:
    """How its exchange rate compares with that of sft, which is 1."""
    low, high = row["exchange_rate_low"], row["exchange_rate_high"]
    if row["objective"] == "sft":
        return "The others are compared with it."
    if low is None:
        return "It has no price, because it may gain nothing."
    if low == high == 1:
        return "It pays what sft pays."
    if low <= 1 <= high:
        return "Whether it pays more or less than sft for the same gain is open."
    return f"It pays {'less' if high < 1 else 'more'} than sft for the same gain."


def _note(row: Row) -> str:
    """The table's note; a missing rate is explained by the price."""
    notes = [n for n in str(row["note"]).split("; ") if n and not n.startswith("no rate")]
    return f" Note: {'; '.join(notes)}." if notes else ""


def _cards(scan: Scan, rows: Sequence[Row]) -> list[Figure]:
    """The headline: what sft does, who pays least, and which tokens pull against."""
    sft = rows[0]
    return [
        Figure(
            f"{signed(-sft['gain'])} nats",
            "is what one step of sft does to the held-out nll",
            f"95%: {number(-sft['gain_high'])} to {number(-sft['gain_low'])}. Below 0 it learns.",
        ),
        Figure(
            f"{signed(sft['retain_nll_change'])} nats",
            "is what the same step does to the retained nll",
            f"95%: {_interval(sft, 'retain_nll_change')}. Above 0 it forgets. KL from the model "
            f"as it was: {number(sft['retain_kl'])} nats.",
        ),
        _cheapest(rows),
        _against(scan),
    ]


def _cheapest(rows: Sequence[Row]) -> Figure:
    others = [r for r in rows if r["objective"] != "sft" and r["exchange_rate"] is not None]
    if not others:
        return Figure("None", "of the other objectives gains for certain", "So none has a price.")
    least = min(others, key=lambda row: float(row["exchange_rate"]))
    rate = f"{number(least['exchange_rate'])} times"
    detail = f"95%: {_interval(least, 'exchange_rate')}."
    of = counted_noun(len(others), "other objective")
    if least["exchange_rate_high"] < 1:
        label = f"the KL of sft is what {least['objective']} pays for the same gain"
        return Figure(rate, label, f"{detail} The least of {of}.")
    label = f"of {of} pays less than sft for the same gain, as far as the intervals tell"
    return Figure("None", label, f"The least: {least['objective']}, {rate} the KL. {detail}")


def _against(scan: Scan) -> Figure:
    """Means of these tokens; of other data they would be others."""
    mean = "avg(retain_alignment) FILTER ({})"
    query = f"""
        SELECT count_if(retain_alignment < 0) / count(*),
               {mean.format("conflict")}, {mean.format("NOT conflict")} FROM tokens"""
    ((share, *means),) = scan.rows(query)
    kinds = zip(("conflicts", "other tokens"), means, strict=True)
    said = ", ".join(f"{kind} {signed(m)}" for kind, m in kinds if m is not None)
    return Figure(
        percent(share),
        "of the tokens pull against the retained data",
        f"A step on one of them raises the retained nll. Mean alignment: {said}.",
    )


def _interval(row: Row, name: str) -> str:
    return f"{number(row[f'{name}_low'])} to {number(row[f'{name}_high'])}"
