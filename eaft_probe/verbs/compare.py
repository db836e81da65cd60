"""`compare`: two finished scans, token by token where the data are the same, else as distributions.

open both → which of the two applies → refuse what does not match → add up → table and totals.
No model and no torch.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas

from eaft_probe.analysis.bootstrap import (
    FEWEST,
    QUANTITIES,
    Floats,
    interval,
    per_token,
    quantity_sums,
    resampled,
)
from eaft_probe.analysis.token_join import joined_tokens
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.groups import GROUP_COLUMNS, GROUPS, groups
from eaft_probe.data.formats import WITHOUT_TEMPLATE
from eaft_probe.errors import BadInput, ScanError
from eaft_probe.scans.keys import Arrays
from eaft_probe.scans.manifest import is_loaded
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import CompareSettings, make_settings
from eaft_probe.storage.remote import name_of

By = Literal["tokens", "distributions"]
CHANGES = ("learned", "unchanged", "forgotten")
MEANS = ("nll", "entropy", "prob")


@dataclass(frozen=True)
class Comparison:
    """Two scans compared; what it holds depends on `by`.

    tokens: `table` has a row for each group of tokens under A (`columns/groups.py`): how many of
        them were learned, unchanged and forgotten, and the means of nll, entropy (nats) and prob
        under A, under B, and B − A. `totals` has the same over all tokens, the tokens that only
        one scan has, and the conflicts resolved (no conflict under B), remaining and new.
    distributions: `table` has a row for each quantity: its value in A and in B, A − B and A / B,
        each with the ends of its 95 % interval. `totals` counts tokens and examples.
    """

    a: Scan
    b: Scan
    by: By
    said: str  # which of the two it is, and why
    rule: ConflictRule  # A's, for both
    totals: dict[str, Any]
    table: pandas.DataFrame
    notes: tuple[str, ...]  # what a reader of the numbers should know

    def summary(self) -> dict[str, Any]:
        """What `--json` prints; None where there is no number."""
        first = str(self.table.columns[0])
        rows = {row.pop(first): row for row in self.table.to_dict("records")}
        summary = {
            "by": self.by,
            "said": self.said,
            "a": _origin(self.a),
            "b": _origin(self.b),
            "rule": {**self.rule.as_dict(), "text": str(self.rule)},
            **self.totals,
            {"group": "groups", "quantity": "quantities"}[first]: rows,
            "notes": list(self.notes),
        }
        return {name: _finite(value) for name, value in summary.items()}


def _origin(scan: Scan) -> dict[str, str]:
    data, model = scan.manifest["data"], scan.manifest["model"]
    return {"path": name_of(scan.place), "data": data["source"], "model": model["name"]}


def _finite(value: object) -> object:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def compare(a: Scan | str | Path, b: Scan | str | Path, **settings: Any) -> Comparison:
    """Two finished scans, compared; A is the base model's, or the data in question.

    Scans of the same data (by its fingerprint) are compared token by token: a token is learned
    where its log-probability under B is above that under A by more than `delta` nats, forgotten
    where it is below by more, unchanged within. The default ln 2 means: the label more than twice,
    or less than half, as probable. Below 1e-4, by which two runs of one model differ, `delta` is
    refused.

    Scans of other data are compared as distributions: shares of conflicts, of low-entropy,
    high-entropy and agreeing tokens, mean nll and mean entropy, with 95 % bootstrap intervals
    over 2,000 resamples of each scan's examples, the same on every call.

    Every other argument is a field of `CompareSettings` and a flag of `eaft-probe compare`.
    Raises `ScanError` where the same tokens are claimed and are not there, and `BadInput`.
    """
    wanted: CompareSettings = make_settings(CompareSettings, settings)
    a, b = (s if isinstance(s, Scan) else Scan.open(s) for s in (a, b))
    by, said = comparison_kind(a, b, wanted.by)
    if by == "tokens":
        return _by_tokens(a, b, said, wanted.delta)
    return _by_distributions(a, b, said, wanted.seed)


def comparison_kind(a: Scan, b: Scan, by: By | None) -> tuple[By, str]:
    """Which comparison applies, and why. Raises `BadInput` where a scan has no token."""
    for scan in (a, b):
        if not scan.kept:
            what = "has no scored token" if scan.keeps_all else "kept no token"
            raise BadInput(f"{scan.place} {what} to compare")
        if scan.keep_tokens == "flagged":  # a sample stands for the whole, its conflicts do not
            scan.require_all("compare")
    first, second = (str(s.manifest["data"]["fingerprint"]) for s in (a, b))
    chosen: By = by or ("tokens" if first == second else "distributions")
    data = f"the same data ({first[:12]})"
    if first != second:
        data = f"different data ({first[:12]} and {second[:12]})"
    compared = {"tokens": "token by token", "distributions": "as distributions"}[chosen]
    return chosen, f"{data}, compared {compared}" + (f", as --by {by} asks" if by else "")


# --- token by token ---


def _by_tokens(a: Scan, b: Scan, said: str, delta: float) -> Comparison:
    pieces = (by_group(in_a, values, a.rule) for in_a, values in token_changes(a, b, delta))
    sums = reduce(pandas.DataFrame.add, pieces)
    table = means_and_shares(sums).rename_axis("group").reset_index()
    totals = {"delta": delta, **_totals(a, b, table, sums["conflict_b"])}
    notes = tuple(_token_notes(a, b, int(sums.loc["all", "tokens"])))
    return Comparison(a, b, "tokens", said, a.rule, totals, table, notes)


def by_group(in_a: Arrays, values: pandas.DataFrame, rule: ConflictRule) -> pandas.DataFrame:
    """(groups, K) sums of the values over the groups of tokens under A."""
    masks = np.stack(list(groups(in_a, rule).values())).astype(np.float64)  # (groups, N)
    return pandas.DataFrame(masks @ values.to_numpy(), list(GROUPS), values.columns)


def token_changes(a: Scan, b: Scan, delta: float) -> Iterator[tuple[Arrays, pandas.DataFrame]]:
    """The tokens of both scans piece by piece: A's columns, and what is added up of each.

    Raises `ScanError` where the scans are of other tokens.
    """
    _require_same_template(a, b)
    kl = ["kl_reference"] if "kl_reference" in b.columns else []
    rule, in_common = a.rule, False
    reads = sorted({"logprob", "entropy", "prob", *rule.reads})
    for in_a, in_b in joined_tokens(a, b, sorted({*reads, *GROUP_COLUMNS}), [*reads, *kl]):
        in_common = True
        change = in_b["logprob"].astype(np.float64) - in_a["logprob"]
        values = {
            "tokens": np.ones(len(change)),
            "learned": change > delta,
            "forgotten": change < -delta,
            "conflict_b": rule(in_b),
        }
        for side, columns in (("a", in_a), ("b", in_b)):
            values |= {
                f"nll_{side}": -columns["logprob"],
                f"entropy_{side}": columns["entropy"],
                f"prob_{side}": columns["prob"],
            }
        values |= {name: in_b[name] for name in kl}
        yield in_a, pandas.DataFrame(values).astype(np.float64)
    if not in_common:
        raise ScanError(
            f"{a.path} and {b.path} have no token in common; check that they were made with the "
            f"same rows (--limit, --sample) and --train-on"
        )


def _require_same_template(a: Scan, b: Scan) -> None:
    plain = all(s.manifest["data"]["format"] in WITHOUT_TEMPLATE for s in (a, b))
    if a.manifest["chat_template"] != b.manifest["chat_template"] and not plain:
        raise ScanError(
            f"{b.path} was made with another chat template than {a.path}, so its tokens "
            f"were scored in another context; --by distributions compares the two as wholes"
        )


def means_and_shares(sums: pandas.DataFrame) -> pandas.DataFrame:
    """Sums of `moved` → counts, shares and means; NaN where there is no token."""
    count = sums["tokens"].where(sums["tokens"] > 0)
    unchanged = sums["tokens"] - sums["learned"] - sums["forgotten"]
    frame = sums.assign(unchanged=unchanged)[["tokens", *CHANGES]].astype(np.int64)
    for name in CHANGES:
        frame[f"{name}_share"] = frame[name] / count
    for name in MEANS:
        before, after = (sums[f"{name}_{side}"] / count for side in ("a", "b"))
        frame[f"mean_{name}_a"], frame[f"mean_{name}_b"] = before, after
        frame[f"{name}_change"] = after - before
    if "kl_reference" in sums:
        frame["kl_reference"] = sums["kl_reference"] / count
    return frame


def _totals(
    a: Scan, b: Scan, table: pandas.DataFrame, conflicts_b: pandas.Series
) -> dict[str, object]:
    """`conflicts_b`: how many tokens of each group are conflicts under B."""
    rows = table.set_index("group")
    (whole,) = rows.loc[["all"]].to_dict("records")
    before, after = int(rows.loc["conflict", "tokens"]), int(conflicts_b["all"])
    remaining = int(conflicts_b["conflict"])
    return {
        **whole,
        "tokens_only_a": a.kept - whole["tokens"],
        "tokens_only_b": b.kept - whole["tokens"],
        "conflicts_a": before,
        "conflicts_b": after,
        "conflicts_resolved": before - remaining,
        "conflicts_remaining": remaining,
        "conflicts_new": after - remaining,
        "reference": b.manifest["config"].get("reference"),
    }


def _token_notes(a: Scan, b: Scan, in_common: int) -> Iterator[str]:
    only_a, only_b = a.kept - in_common, b.kept - in_common
    if only_a or only_b:
        yield (
            f"{in_common:,} tokens are in both scans and are compared; "
            f"{only_a:,} are only in A, {only_b:,} only in B"
        )
    yield from _sample_notes(a, b)
    yield from _rule_notes(a, b)
    longest = [s.manifest["model"].get("max_length") for s in (a, b)]
    if longest[0] != longest[1] and a.manifest["data"]["format"] == "text":
        yield (
            f"texts were split into windows of {longest[0]} tokens in A and {longest[1]} in B: "
            f"what comes after the shorter window was scored in another context"
        )


def _sample_notes(a: Scan, b: Scan) -> Iterator[str]:
    for side, scan in (("A", a), ("B", b)):
        if not scan.keeps_all:
            yield (
                f"{side} kept {scan.kept:,} of {scan.manifest['counts']['trained_tokens']:,} "
                f"tokens ({scan.keep_tokens}); only those are compared"
            )


def _rule_notes(a: Scan, b: Scan) -> Iterator[str]:
    if a.rule.thresholds != b.rule.thresholds:
        yield f"B is flagged by another rule ({b.rule}); here A's rule is used for both ({a.rule})"


# --- as distributions ---


def _by_distributions(a: Scan, b: Scan, said: str, seed: int) -> Comparison:
    (sums_a, examples_a), (sums_b, examples_b) = (quantity_sums(s, a.rule) for s in (a, b))
    totals = {
        "tokens_a": a.kept,
        "tokens_b": b.kept,
        "examples_a": examples_a,
        "examples_b": examples_b,
        "intervals": min(examples_a, examples_b) >= FEWEST,
    }
    table = _quantities(per_token(sums_a.sum(0)), per_token(sums_b.sum(0)))
    if totals["intervals"]:  # two streams: equal draws would tie row 1 of A to row 1 of B
        draws = (per_token(resampled(sums, (seed, i))) for i, sums in enumerate((sums_a, sums_b)))
        table = table.assign(**_intervals(*draws))
    notes = tuple(_distribution_notes(a, b, totals))
    return Comparison(a, b, "distributions", said, a.rule, totals, table, notes)


def _compared(a: Floats, b: Floats) -> dict[str, Floats]:
    """Both sides and what is between them; the ratio is ∞ over 0, NaN where both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"a": a, "b": b, "difference": a - b, "ratio": a / b}


def _quantities(a: Floats, b: Floats) -> pandas.DataFrame:
    columns: dict[str, object] = {"quantity": list(QUANTITIES)}
    for name, values in _compared(a, b).items():
        columns |= {name: values, f"{name}_low": np.nan, f"{name}_high": np.nan}
    return pandas.DataFrame(columns)


def _intervals(a: Floats, b: Floats) -> dict[str, list[float]]:
    """The ends of the intervals from (RESAMPLES, QUANTITIES) resampled values."""
    ends = {name: [interval(v) for v in values.T] for name, values in _compared(a, b).items()}
    return {
        f"{name}_{end}": [pair[i] for pair in pairs]
        for name, pairs in ends.items()
        for i, end in enumerate(("low", "high"))
    }


def _distribution_notes(a: Scan, b: Scan, totals: Mapping[str, int]) -> Iterator[str]:
    yield from _model_notes(*(s.manifest["model"] for s in (a, b)))
    if a.by_turn != b.by_turn:
        yield (
            f"A was made with --turns {a.turns}, B with --turns {b.turns}: a difference may come "
            f"from what stood before an answer"
        )
    yield from _sample_notes(a, b)
    yield from _rule_notes(a, b)
    if not totals["intervals"]:
        yield (
            f"no intervals: they need at least {FEWEST} examples in each; A has "
            f"{totals['examples_a']:,}, B has {totals['examples_b']:,}"
        )


def _model_notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    names = f"({a['name']} and {b['name']})"
    if is_loaded(a) != is_loaded(b):
        yield (
            f"one of the models was loaded by a program {names}, so whether their weights are the "
            f"same is not known: a difference may come from the model or from the data"
        )
    elif any(a.get(n) != b.get(n) for n in ("identity", "adapter_identity")):
        yield (
            f"the models differ too {names}: a difference may come from the model or from the data"
        )
