"""Exact quantiles of float32 columns of any length in constant memory.

The bits of a float, read as an integer, sort like the float. One pass counts the upper 16 bits,
which finds each wanted rank's bin; a second counts the lower 16 bits within those bins.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Chunks = Callable[[], Iterable[NDArray[np.float32]]]


def quantiles(chunks: Chunks, at: Sequence[float]) -> list[float]:
    """The quantiles `at` (each in 0..1) of all values, as `numpy.quantile` defines them.

    `chunks` is called twice and gives the values in pieces, without NaN. NaN where there are none.

    >>> quantiles(lambda: [np.float32([3, 1]), np.float32([2])], [0, 0.25, 1])
    [1.0, 1.5, 3.0]
    """
    upper = np.zeros(1 << 16, np.int64)
    for chunk in chunks():
        upper += np.bincount(_sortable(chunk) >> 16, minlength=1 << 16)
    total = int(upper.sum())
    if not total:
        return [float("nan")] * len(at)
    places = [q * (total - 1) for q in at]
    ranks = sorted({r for p in places for r in (math.floor(p), math.ceil(p))})
    found = dict(zip(ranks, _order_statistics(chunks, upper, ranks), strict=True))
    return [_between(found, p) for p in places]


def _between(found: dict[int, float], place: float) -> float:
    low, high = found[int(np.floor(place))], found[int(np.ceil(place))]
    return low if low == high else low + (high - low) * (place % 1)  # infinite ones too


def _order_statistics(
    chunks: Chunks, upper: NDArray[np.int64], ranks: Sequence[int]
) -> list[float]:
    ends = np.cumsum(upper)
    bins = np.searchsorted(ends, ranks, side="right")
    lower = {int(b): np.zeros(1 << 16, np.int64) for b in bins}
    for chunk in chunks():
        bits = _sortable(chunk)
        for b, counts in lower.items():
            inside = bits[bits >> 16 == b] & 0xFFFF
            counts += np.bincount(inside, minlength=1 << 16)
    return [
        _value(b, int(np.searchsorted(np.cumsum(lower[b]), rank - (ends[b] - upper[b]), "right")))
        for rank, b in zip(ranks, map(int, bins), strict=True)
    ]


def _sortable(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """float32 → uint32 in the same order: negative numbers have all bits flipped."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _value(upper: int, lower: int) -> float:
    bits = np.uint32(upper << 16 | lower)
    back = bits ^ np.uint32(1 << 31) if bits >> 31 else ~bits
    return float(back.view(np.float32))
