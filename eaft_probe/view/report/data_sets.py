"""Several scans on one page: shares and means with intervals, and the planes on one scale."""

import math
from collections.abc import Iterator, Sequence

from eaft_probe.analysis.bootstrap import (
    FEWEST,
    QUANTITIES,
    interval,
    per_token,
    quantity_sums,
    resampled,
)
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.groups import GROUPS
from eaft_probe.quantities import counted_noun
from eaft_probe.scans.scan import Scan
from eaft_probe.storage.remote import name_of
from eaft_probe.view.labels import data_name, model_name
from eaft_probe.view.report.planes import panel
from eaft_probe.view.report.selection import Record

MEANINGS = {
    **GROUPS,
    **{f"{name}_share": meaning for name, meaning in GROUPS.items()},
    "mean_nll": "−logprob of a token, nats",
    "mean_entropy": "of a token, nats",
}


def side_by_side(scans: Sequence[Scan], seed: int) -> Record:
    """The section on several scans, as JSON values; the first scan's rule counts for all.

    Raises `BadInput` for a scan that kept its conflicts alone, `MissingColumn`.
    """
    for scan in scans:
        if scan.keep_tokens == "flagged":
            scan.require_all("a report of several scans")
    names, rule = titles(scans), scans[0].rule
    sets = [_described(s, names[i], rule, (seed, i)) for i, s in enumerate(scans)]
    return {
        "title": _title(scans),
        "rule": rule.as_dict(),
        "said": f"Confident conflict: {rule}",
        "meanings": {name: MEANINGS[name] for name in QUANTITIES},
        "sets": sets,
        "notes": list(_notes(scans, names, sets)),
    }


def _described(scan: Scan, name: str, rule: ConflictRule, seed: tuple[int, int]) -> Record:
    sums, examples = quantity_sums(scan, rule)
    values = per_token(sums.sum(0))
    ends = [(math.nan, math.nan)] * len(values)
    if examples >= FEWEST:
        ends = [interval(column) for column in per_token(resampled(sums, seed)).T]
    rows = zip(QUANTITIES, values, ends, strict=True)
    return {
        "name": name,
        "examples": examples,
        "tokens": scan.kept,
        "quantities": {q: [_finite(v), *map(_finite, both)] for q, v, both in rows},
        "plane": panel(scan),
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# --- in words ---


def titles(scans: Sequence[Scan]) -> list[str]:
    """What tells the scans apart: their data, their models, both, their folders, or numbers."""
    data, models = [data_name(s) for s in scans], [model_name(s) for s in scans]
    both = [f"{d} under {m}" for d, m in zip(data, models, strict=True)]
    short = data if len(set(models)) == 1 else models if len(set(data)) == 1 else both
    numbered = [f"{i}: {name}" for i, name in enumerate(both, 1)]
    candidates = (short, [name_of(s.place) for s in scans], numbered)
    return next(c for c in candidates if len(set(c)) == len(c))


def _title(scans: Sequence[Scan]) -> str:
    data, models = [data_name(s) for s in scans], [model_name(s) for s in scans]
    if len(set(models)) == 1:
        return f"{len(scans)} data sets under {models[0]}"
    return f"{data[0]} under {len(scans)} models" if len(set(data)) == 1 else f"{len(scans)} scans"


def _notes(scans: Sequence[Scan], names: Sequence[str], sets: Sequence[Record]) -> Iterator[str]:
    if len({_identity(s) for s in scans}) > 1:
        yield "The models differ too: a difference may come from the model or from the data."
    if len({s.manifest["data"]["fingerprint"] for s in scans}) < len(scans):
        yield (
            "Some of these scans are of the same data: `eaft-probe report A --against B` compares "
            "two of them token by token."
        )
    if len({s.turns for s in scans}) > 1:
        yield "Some were made with --turns each: their turns were scored with other histories."
    first = scans[0].rule
    for scan, name, row in zip(scans, names, sets, strict=True):
        if scan.rule.thresholds != first.thresholds:
            yield f"{name} is flagged by another rule ({scan.rule}); here {first} is used for all."
        if not scan.keeps_all:
            total = counted_noun(scan.manifest["counts"]["trained_tokens"], "token")
            yield f"{name} kept {scan.kept:,} of {total}; shares and means here are of those."
        if row["examples"] < FEWEST:
            have = counted_noun(row["examples"], "example")
            yield f"{name} has {have}: an interval needs at least {FEWEST}."


def _identity(scan: Scan) -> tuple[object, object]:
    model = scan.manifest["model"]
    return model.get("identity"), model.get("adapter_identity")
