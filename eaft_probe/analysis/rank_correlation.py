"""How well one norm stands for another on a weighted sample: rank correlations with intervals."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas
from numpy.typing import NDArray

from eaft_probe.analysis import bootstrap
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.scans.keys import Arrays

Floats = NDArray[np.float64]
Numbers = NDArray[np.number]
Statistic = Callable[[Floats], float]  # of the tokens' weights

EXACT, WEIGHT = "grad_full", "stands_for"
CLOSED = ("grad_logits", "grad_head", "grad_hidden")
MEASURES = {
    "rank_correlation": "Spearman's, with grad_full, over all tokens",
    "conflict_rank_correlation": "the same among the conflicts under the rule",
    "conflict_share": "the conflicts' share of the gradient mass",
}


def agreement(sample: Arrays, rule: ConflictRule) -> pandas.DataFrame:
    """A row for each of MEASURES and norm: `measure, norm, sampled, value, low, high`.

    `sample`: columns example, prob, entropy, stands_for, grad_full and those of CLOSED that there
    are. Each token counts for as many tokens of the scan as it `stands_for`. `low` and `high`: the
    95 % bootstrap interval over examples, whose tokens are no independent draws; NaN where fewer
    than 10 examples have such tokens. `value` is NaN where a norm does not vary.
    """
    closed = [n for n in CLOSED if n in sample]
    conflict = np.asarray(rule(sample))
    conflicts = {n: c[conflict] for n, c in sample.items()}
    tokens = {"rank_correlation": sample, "conflict_rank_correlation": conflicts}
    rows = [
        _row(measure, n, columns, correlation(columns[n], columns[EXACT]))
        for measure, columns in tokens.items()
        for n in closed
    ]
    shares = [(n, share(sample[n], conflict)) for n in (EXACT, *closed)]
    return pandas.DataFrame(rows + [_row("conflict_share", n, sample, s) for n, s in shares])


def _row(measure: str, norm: str, sample: Arrays, value: Statistic) -> dict[str, object]:
    weight = sample[WEIGHT].astype(np.float64)
    low, high = interval(value, weight, sample["example"])
    return {
        "measure": measure,
        "norm": norm,
        "sampled": len(weight),
        "value": value(weight),
        "low": low,
        "high": high,
    }


# --- what is measured, as functions of the weights ---


def correlation(x: Numbers, y: Numbers) -> Statistic:
    """Spearman's rank correlation: Pearson's of weighted mid-ranks.

    A mid-rank is the weight below a value and half of that at it; equal weights give the usual
    ranks. NaN where one of the two does not vary.
    """
    codes = [np.unique(values, return_inverse=True)[1] for values in (x, y)]

    def correlated(weight: Floats) -> float:
        total = weight.sum()
        if total <= 0:
            return float("nan")
        ranks = [_mid_ranks(code, weight) for code in codes]
        a, b = (r - (weight @ r) / total for r in ranks)
        spread = (weight @ a**2) * (weight @ b**2)
        # Ranks lie between 0 and the total: what is left of equal ones is rounding.
        return float(weight @ (a * b) / np.sqrt(spread)) if spread > 1e-18 * total**6 else np.nan

    return correlated


def _mid_ranks(codes: NDArray[np.int64], weight: Floats) -> Floats:
    mass = np.bincount(codes, weight)
    return (np.cumsum(mass) - mass / 2)[codes]


def share(values: Numbers, inside: NDArray[np.bool_]) -> Statistic:
    """Of Σ weight · value the part that is inside; NaN where the sum is 0."""
    values = values.astype(np.float64)

    def shared(weight: Floats) -> float:
        total = weight @ values
        return float(weight[inside] @ values[inside] / total) if total > 0 else np.nan

    return shared


def interval(value: Statistic, weight: Floats, example: NDArray[np.integer]) -> tuple[float, float]:
    """The middle 95 % of the value over resamples of the examples, where it is finite."""
    examples, code = np.unique(example, return_inverse=True)
    if len(examples) < bootstrap.FEWEST:
        return float("nan"), float("nan")
    pieces = bootstrap.resamples(len(examples), seed=0)
    values = np.array([value(weight * times[code]) for piece in pieces for times in piece])
    return bootstrap.interval(values[np.isfinite(values)])


# --- means with their intervals, cell by cell ---


def means(
    group: NDArray[np.int64], values: Sequence[Numbers], weight: Numbers, count: int
) -> tuple[NDArray[np.int64], list[tuple[Floats, Floats]]]:
    """(count,) tokens of each group, and of each of the values the weighted (mean, half).

    mean ± half is the 95 % interval by Student's t; NaN without a token, half NaN with one alone.
    """
    n, weights = np.bincount(group, minlength=count), weight.astype(np.float64)
    total = np.where(n, np.bincount(group, weights, count), np.nan)
    return n, [_mean(group, v.astype(np.float64), weights, n, total) for v in values]


def _mean(
    group: NDArray[np.int64], values: Floats, weight: Floats, n: NDArray[np.int64], total: Floats
) -> tuple[Floats, Floats]:
    mean = np.bincount(group, weight * values, len(n)) / total
    squared = np.bincount(group, (weight * (values - mean[group])) ** 2, len(n))
    freedom = np.where(n > 1, n - 1, np.nan)
    return mean, student(freedom) * np.sqrt(squared * n / freedom) / total


def student(freedom: Floats) -> Floats:
    """The 97.5 % quantile of Student's t by its series in 1/freedom; 0.1 % low at 3, 11 % at 1.

    Source: Abramowitz and Stegun, 26.7.5.
    """
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum((t / freedom**k for k, t in enumerate(terms, 1)), 0 * freedom)
