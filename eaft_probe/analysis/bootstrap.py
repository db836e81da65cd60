"""Bootstrap intervals over examples: tokens of one example are not independent draws."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.groups import GROUP_COLUMNS, GROUPS, groups
from eaft_probe.errors import ScanError
from eaft_probe.scans.keys import Arrays
from eaft_probe.scans.scan import Scan

RESAMPLES = 2_000
LEVEL = 0.95
FEWEST = 10  # examples under which resampling them says nothing
# Examples are summed up one by one as far as here, and beyond it every 9,973rd joins one bunch:
# memory does not grow with the data, and 2,000 resamples take 3 s at most. A prime, so that no
# period in the order of the data makes the examples of a bunch alike.
BUNCHES = 9_973
WEIGHTS = 4_000_000  # drawn at a time: 32 MB

SHARES = tuple(name for name in GROUPS if name != "all")
QUANTITIES = (*(f"{name}_share" for name in SHARES), "mean_nll", "mean_entropy")

Floats = NDArray[np.float64]
Values = Callable[[Arrays], Floats]  # columns → (K, N)


def sums_by_example(scan: Scan, reads: Sequence[str], values: Values) -> tuple[Floats, int]:
    """(min(E, BUNCHES), K) sums of `values` over each example's tokens, and E. One pass."""
    return sums_of_pieces(scan.token_arrays(sorted({"example", *reads})), values, scan.place)


def sums_of_pieces(
    pieces: Iterable[Arrays], values: Values, name: str
) -> tuple[NDArray[np.float64], int]:
    """The same of columns that have an `example`, which rises."""
    sums, seen, last = np.zeros((BUNCHES, 1)), 0, -1
    for columns in pieces:
        new = np.diff(columns["example"], prepend=last) != 0
        if not len(new):
            continue
        bunch = (seen - 1 + np.cumsum(new)) % BUNCHES
        more = np.stack([np.bincount(bunch, v, BUNCHES) for v in values(columns)], 1)
        sums = sums + more  # (BUNCHES, K) from the first piece on
        seen, last = seen + int(new.sum()), int(columns["example"][-1])
    if not seen:
        raise ScanError(f"{name} has no scored token")
    return sums[: min(seen, BUNCHES)], seen


def quantity_sums(scan: Scan, rule: ConflictRule) -> tuple[Floats, int]:
    """(min(E, BUNCHES), 1 + QUANTITIES) sums over each example's tokens, which are counted first,
    and E. One pass."""

    def values(columns: Arrays) -> Floats:
        inside = groups(columns, rule)
        rows = [*(inside[name] for name in SHARES), -columns["logprob"], columns["entropy"]]
        return np.stack([inside["all"], *rows]).astype(np.float64)

    return sums_by_example(scan, (*GROUP_COLUMNS, *rule.reads, "logprob"), values)


def per_token(sums: Floats) -> Floats:
    """(…, 1 + QUANTITIES) sums, the tokens first → (…, QUANTITIES) shares and means."""
    return np.asarray(sums[..., 1:] / sums[..., :1])


def resampled(sums: Floats, seed: Sequence[int]) -> Floats:
    """(RESAMPLES, K) sums over as many rows as there are, drawn with replacement."""
    return np.concatenate([times @ sums for times in resamples(len(sums), seed)])


def resamples(count: int, seed: int | Sequence[int]) -> Iterator[Floats]:
    """How often each of `count` rows is drawn, in RESAMPLES rows (1, count) of few pieces."""
    random, size = np.random.default_rng(seed), max(1, WEIGHTS // count)
    for start in range(0, RESAMPLES, size):
        draws = min(size, RESAMPLES - start)
        yield random.multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)


def interval(values: Floats) -> tuple[float, float]:
    """The middle 95 % of the values; NaN where one is not a number, ∞ where they reach it."""
    if not len(values) or np.isnan(values).any():
        return float("nan"), float("nan")
    ordered, tail = np.sort(values), int((1 - LEVEL) / 2 * (len(values) - 1))
    return float(ordered[tail]), float(ordered[-1 - tail])
