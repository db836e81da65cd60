"""Exact quantiles of float32 columns of any length in constant memory.

The bits of a float, read as an integer, sort like the float. One pass counts the upper 16 bits,
which finds each wanted rank's bin; a second counts the lower 16 bits within those bins.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Chunks = Callable[[], Iterable[NDArray[np.float32]]]
UPPER = 1 << 16  # values of the upper bits: sign, exponent and 7 bits of the mantissa
TOO_LOW = 2**-7  # of itself, what a quantile by upper bits alone is nearer to 0 at most


def quantiles(chunks: Chunks, at: Sequence[float]) -> list[float]:
    """The quantiles `at` (each in 0..1) of all values, as `numpy.quantile` defines them.

    `chunks` is called twice and gives the values in pieces, without NaN. NaN where there are none.

    >>> quantiles(lambda: [np.float32([3, 1]), np.float32([2])], [0, 0.25, 1])
    [1.0, 1.5, 3.0]
    """
    upper = np.zeros(UPPER, np.int64)
    for chunk in chunks():
        upper += upper_bits(chunk)
    return _quantiles(int(upper.sum()), at, lambda ranks: _order_statistics(chunks, upper, ranks))


def order_statistic(chunks: Chunks, rank: int) -> float:
    """The value with that rank from 0, in rising order.

    >>> order_statistic(lambda: [np.float32([3, 1]), np.float32([2])], 1)
    2.0
    """
    upper = np.zeros(UPPER, np.int64)
    for chunk in chunks():
        upper += upper_bits(chunk)
    return _order_statistics(chunks, upper, [rank])[0]


def upper_bits(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """(UPPER,) how many of the values have which upper 16 bits. They add up: a sketch of any number
    of values, from which `quantiles_within` has quantiles."""
    return np.bincount(_sortable(values) >> 16, minlength=UPPER)


def quantiles_within(upper: NDArray[np.int64], at: Sequence[float]) -> list[float]:
    """Quantiles from the sums of `upper_bits`, nearer to 0 than the exact ones by less than 2⁻⁷ of
    themselves; 0, 1 and every power of two are exact.

    >>> quantiles_within(upper_bits(np.float32([0, 1, 3.01])), [0, 0.5, 1])
    [0.0, 1.0, 3.0]
    """
    ends = np.cumsum(upper)

    def values(ranks: Sequence[int]) -> list[float]:
        return [
            _value(b, 0 if b >> 15 else 0xFFFF)  # the nearest to 0 in each bin
            for b in np.searchsorted(ends, ranks, side="right").tolist()
        ]

    return _quantiles(int(ends[-1]), at, values)


def _quantiles(
    total: int, at: Sequence[float], values: Callable[[Sequence[int]], list[float]]
) -> list[float]:
    """`values` gives those at some ranks, from 0."""
    if not total:
        return [float("nan")] * len(at)
    exact = [q * (total - 1) for q in at]  # ranks, which may lie between two whole ones
    ranks = sorted({whole for rank in exact for whole in (math.floor(rank), math.ceil(rank))})
    by_rank = dict(zip(ranks, values(ranks), strict=True))
    return [_between(by_rank[math.floor(r)], by_rank[math.ceil(r)], r % 1) for r in exact]


def _between(low: float, high: float, share: float) -> float:
    return low if low == high else low + (high - low) * share  # infinite ones too


def _order_statistics(
    chunks: Chunks, upper: NDArray[np.int64], ranks: Sequence[int]
) -> list[float]:
    ends = np.cumsum(upper)
    bins = np.searchsorted(ends, ranks, side="right").tolist()
    lower = {b: np.zeros(1 << 16, np.int64) for b in bins}
    for chunk in chunks():
        bits = _sortable(chunk)
        for b, counts in lower.items():
            counts += np.bincount(bits[bits >> 16 == b] & 0xFFFF, minlength=1 << 16)
    return [
        _value(b, int(np.searchsorted(np.cumsum(lower[b]), rank - (ends[b] - upper[b]), "right")))
        for rank, b in zip(ranks, bins, strict=True)
    ]


def _sortable(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """float32 → uint32 in the same order: negative numbers have all bits flipped."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _value(upper: int, lower: int) -> float:
    bits = np.uint32(upper << 16 | lower)
    bits = bits ^ np.uint32(1 << 31) if bits >> 31 else ~bits
    return float(bits.view(np.float32))
