"""`compare`: two finished scans, token by token where the data are the same, else as distributions.

open both → which of the two applies → refuse what does not match → add up → table and totals.
No model and no torch.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas
from numpy.typing import NDArray

from eaft_probe.analysis.bootstrap import FEWEST, interval, resampled, sums_by_example
from eaft_probe.analysis.token_join import Arrays, aligned
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.groups import GROUPS, READS, groups
from eaft_probe.data.formats import WITHOUT_TEMPLATE
from eaft_probe.errors import BadInput, ScanError
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import CompareSettings, make_settings
from eaft_probe.storage.remote import name_of

By = Literal["tokens", "distributions"]
MEANS = ("nll", "entropy", "prob")
SHARES = tuple(name for name in GROUPS if name != "all")
QUANTITIES = (*(f"{name}_share" for name in SHARES), "mean_nll", "mean_entropy")


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
        found = {
            "by": self.by,
            "said": self.said,
            "a": _origin(self.a),
            "b": _origin(self.b),
            "rule": {**asdict(self.rule), "text": str(self.rule)},
            **self.totals,
            {"group": "groups", "quantity": "quantities"}[first]: rows,
            "notes": list(self.notes),
        }
        return _finite(found)  # type: ignore[no-any-return]


def _origin(scan: Scan) -> dict[str, str]:
    data, model = scan.manifest["data"], scan.manifest["model"]
    return {"path": name_of(scan.place), "data": data["source"], "model": model["name"]}


def _finite(value: Any) -> Any:
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
    by, said = how(a, b, wanted.by)
    if by == "tokens":
        return _by_tokens(a, b, said, wanted.delta)
    return _by_distributions(a, b, said, wanted.seed)


def how(a: Scan, b: Scan, by: By | None) -> tuple[By, str]:
    """Which comparison applies, and why. Raises `BadInput` where a scan has no token."""
    for scan in (a, b):
        if not tokens(scan):
            what = "has no scored token" if scan.keeps_all else "kept no token"
            raise BadInput(f"{scan.place} {what} to compare")
        if scan.keep_tokens == "flagged":  # a sample stands for the whole, its conflicts do not
            scan.require_all("compare")
    prints = [str(s.manifest["data"]["fingerprint"]) for s in (a, b)]
    first, second = (p[:12] for p in prints)
    same = prints[0] == prints[1]
    data = f"the same data ({first})" if same else f"other data ({first} and {second})"
    chosen: By = by or ("tokens" if same else "distributions")
    what = {"tokens": "token by token", "distributions": "as distributions"}[chosen]
    return chosen, f"{data}, compared {what}" + (f", as --by {by} asks" if by else "")


def tokens(scan: Scan) -> int:
    """Those that it has row by row."""
    return scan.kept


# --- token by token ---


def _by_tokens(a: Scan, b: Scan, said: str, delta: float) -> Comparison:
    pieces = (by_group(mine, values, a.rule) for mine, values in moved(a, b, delta))
    sums = reduce(pandas.DataFrame.add, pieces)
    table = described(sums).rename_axis("group").reset_index()
    totals = {"delta": delta, **_totals(a, b, table, sums["conflict_b"])}
    notes = tuple(_token_notes(a, b, totals))
    return Comparison(a, b, "tokens", said, a.rule, totals, table, notes)


def by_group(mine: Arrays, values: pandas.DataFrame, rule: ConflictRule) -> pandas.DataFrame:
    """(groups, K) sums of the values over the groups of tokens under A."""
    masks = np.stack(list(groups(mine, rule).values())).astype(np.float64)  # (groups, N)
    return pandas.DataFrame(masks @ values.to_numpy(), list(GROUPS), values.columns)


def moved(a: Scan, b: Scan, delta: float) -> Iterator[tuple[Arrays, pandas.DataFrame]]:
    """The tokens of both scans piece by piece: A's columns, and what is added up of each.

    Raises `ScanError` where the scans are of other tokens.
    """
    _require_same_template(a, b)
    kl = ["kl_reference"] if "kl_reference" in b.columns else []
    reads, rule, found = ("logprob", "entropy", "prob"), a.rule, False
    for mine, theirs in aligned(a, b, sorted({*reads, *READS}), [*reads, *kl]):
        found = True
        change = theirs["logprob"].astype(np.float64) - mine["logprob"]
        values = {
            "tokens": np.ones(len(change)),
            "learned": change > delta,
            "forgotten": change < -delta,
            "conflict_b": rule(theirs),
        }
        for side, columns in (("a", mine), ("b", theirs)):
            values |= {
                f"nll_{side}": -columns["logprob"],
                f"entropy_{side}": columns["entropy"],
                f"prob_{side}": columns["prob"],
            }
        values |= {name: theirs[name] for name in kl}
        yield mine, pandas.DataFrame(values).astype(np.float64)
    if not found:
        raise ScanError(
            f"{a.path} and {b.path} have no token in common; were they made with "
            f"other rows (--limit, --sample) or --train-on?"
        )


def _require_same_template(a: Scan, b: Scan) -> None:
    templates = {s.manifest["chat_template"] for s in (a, b)}
    plain = all(s.manifest["data"]["format"] in WITHOUT_TEMPLATE for s in (a, b))
    if len(templates) > 1 and not plain:
        raise ScanError(
            f"{b.path} was made with another chat template than {a.path}: its tokens "
            f"stand in another context; --by distributions compares the two as "
            f"wholes"
        )


def described(sums: pandas.DataFrame) -> pandas.DataFrame:
    """Sums of `moved` → counts, shares and means; NaN where there is no token."""
    count = sums["tokens"].where(sums["tokens"] > 0)
    made = {"tokens": sums["tokens"], "learned": sums["learned"]}
    made["unchanged"] = sums["tokens"] - sums["learned"] - sums["forgotten"]
    made["forgotten"] = sums["forgotten"]
    frame = pandas.DataFrame(made).astype(np.int64)
    for name in ("learned", "unchanged", "forgotten"):
        frame[f"{name}_share"] = made[name] / count
    for name in MEANS:
        before, after = (sums[f"{name}_{side}"] / count for side in ("a", "b"))
        frame[f"mean_{name}_a"], frame[f"mean_{name}_b"] = before, after
        frame[f"{name}_change"] = after - before
    if "kl_reference" in sums:
        frame["kl_reference"] = sums["kl_reference"] / count
    return frame


def _totals(
    a: Scan, b: Scan, table: pandas.DataFrame, conflicts_b: pandas.Series
) -> dict[str, Any]:
    """`conflicts_b`: how many tokens of each group are conflicts under B."""
    rows = table.set_index("group")
    (whole,) = rows.loc[["all"]].to_dict("records")
    before, after = int(rows.loc["conflict", "tokens"]), int(conflicts_b["all"])
    remaining = int(conflicts_b["conflict"])
    return {
        **whole,
        "tokens_only_a": tokens(a) - whole["tokens"],
        "tokens_only_b": tokens(b) - whole["tokens"],
        "conflicts_a": before,
        "conflicts_b": after,
        "conflicts_resolved": before - remaining,
        "conflicts_remaining": remaining,
        "conflicts_new": after - remaining,
        "reference": b.manifest["config"].get("reference"),
    }


def _token_notes(a: Scan, b: Scan, totals: Mapping[str, Any]) -> Iterator[str]:
    only = [f"{totals[f'tokens_only_{s}']:,} only in {s.upper()}" for s in ("a", "b")]
    if totals["tokens_only_a"] or totals["tokens_only_b"]:
        yield f"{totals['tokens']:,} tokens are in both scans and are compared; " + ", ".join(only)
    yield from _sample_notes(a, b)
    yield from _rule_notes(a, b)
    longest = [s.manifest["model"].get("max_length") for s in (a, b)]
    if longest[0] != longest[1] and a.manifest["data"]["format"] == "text":
        yield (
            f"texts were split into windows of {longest[0]} and of {longest[1]} tokens: what "
            f"comes after the shorter window was scored in another context"
        )


def _sample_notes(a: Scan, b: Scan) -> Iterator[str]:
    for side, scan in (("A", a), ("B", b)):
        if not scan.keeps_all:
            yield (
                f"{side} kept {tokens(scan):,} of {scan.manifest['counts']['trained_tokens']:,} "
                f"tokens ({scan.keep_tokens}); what is compared is of those"
            )


def _rule_notes(a: Scan, b: Scan) -> Iterator[str]:
    if (a.rule.entropy_below, a.rule.prob_below) != (b.rule.entropy_below, b.rule.prob_below):
        yield f"B is flagged by another rule ({b.rule}); here A's holds for both ({a.rule})"


# --- as distributions ---


def _by_distributions(a: Scan, b: Scan, said: str, seed: int) -> Comparison:
    rule, reads = a.rule, (*READS, "logprob")

    def values(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        inside = groups(columns, rule)
        rows = [*(inside[name] for name in SHARES), -columns["logprob"], columns["entropy"]]
        return np.stack([inside["all"], *rows]).astype(np.float64)

    (one, many), (other, others) = (sums_by_example(s, reads, values) for s in (a, b))
    totals = {
        "tokens_a": tokens(a),
        "tokens_b": tokens(b),
        "examples_a": many,
        "examples_b": others,
        "intervals": min(many, others) >= FEWEST,
    }
    table = _quantities(_means(one.sum(0)), _means(other.sum(0)))
    if totals["intervals"]:  # two streams: equal draws would tie row 1 of A to row 1 of B
        pairs = (_means(resampled(sums, (seed, i))) for i, sums in enumerate((one, other)))
        table = table.assign(**_intervals(*pairs))
    notes = tuple(_distribution_notes(a, b, totals))
    return Comparison(a, b, "distributions", said, rule, totals, table, notes)


def _means(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…, 1 + QUANTITIES) sums, the tokens first → (…, QUANTITIES) per token."""
    means: NDArray[np.float64] = sums[..., 1:] / sums[..., :1]
    return means


def _ratio(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """∞ over 0, NaN where both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        made: NDArray[np.float64] = a / b
    return made


def _quantities(a: NDArray[np.float64], b: NDArray[np.float64]) -> pandas.DataFrame:
    empty = np.full(len(a), np.nan)
    return pandas.DataFrame(
        {
            "quantity": list(QUANTITIES),
            "a": a,
            "a_low": empty,
            "a_high": empty,
            "b": b,
            "b_low": empty,
            "b_high": empty,
            "difference": a - b,
            "difference_low": empty,
            "difference_high": empty,
            "ratio": _ratio(a, b),
            "ratio_low": empty,
            "ratio_high": empty,
        }
    )


def _intervals(a: NDArray[np.float64], b: NDArray[np.float64]) -> dict[str, list[float]]:
    """The ends of the intervals from (RESAMPLES, QUANTITIES) resampled values."""
    found: dict[str, list[float]] = {}
    for name, made in (("a", a), ("b", b), ("difference", a - b), ("ratio", _ratio(a, b))):
        ends = [interval(column) for column in made.T]
        found[f"{name}_low"], found[f"{name}_high"] = ([e[i] for e in ends] for i in (0, 1))
    return found


def _distribution_notes(a: Scan, b: Scan, totals: Mapping[str, Any]) -> Iterator[str]:
    models = [s.manifest["model"] for s in (a, b)]
    if models[0].get("identity") != models[1].get("identity") or (
        models[0].get("adapter_identity") != models[1].get("adapter_identity")
    ):
        yield (
            f"the models differ too ({models[0]['name']} and {models[1]['name']}): a difference "
            f"may be the model's or the data's"
        )
    if a.by_turn != b.by_turn:
        yield (
            f"A was made with --turns {a.turns}, B with --turns {b.turns}: a difference may be "
            f"that of what stood before an answer"
        )
    yield from _sample_notes(a, b)
    yield from _rule_notes(a, b)
    if not totals["intervals"]:
        few = [f"{totals[f'examples_{s}']:,} in {s.upper()}" for s in ("a", "b")]
        yield f"no intervals: they take at least {FEWEST} examples, found {' and '.join(few)}"
