"""A random sample of a scan's tokens, stratified over the entropy–probability plane.

A third of it goes evenly over the tokens, a third evenly over the plane's cells, and a third
evenly over the conflicts: few as they are, something is to be said of them. The conflicts are
those of the default rule, so that a sample does not change when a scan is flagged anew. Memory is
constant, and a larger sample begins with the smaller one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eaft_probe.analysis.histogram2d import ENTROPY_BINS, PROB_BINS, cell
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.scans.keys import Array, Arrays
from eaft_probe.scans.scan import Scan

BY = 16  # of the plane's finest cells: 1/16 in probability, 0.5 nat in entropy
ACROSS, UP = PROB_BINS // BY, ENTROPY_BINS // BY
STRATA = 2 * UP * ACROSS  # a cell's conflicts and the rest of it apart


def coarse_cell(columns: Arrays) -> NDArray[np.int64]:
    """(N,) index of each token's cell: ACROSS · row of entropy + column of probability."""
    up, across = np.divmod(cell(columns), PROB_BINS)
    return np.asarray(up // BY * ACROSS + across // BY, np.int64)


def stratum(columns: Arrays) -> NDArray[np.int64]:
    """(N,) twice the cell, and one more for a conflict of the default rule."""
    return np.asarray(2 * coarse_cell(columns) + ConflictRule()(columns), np.int64)


@dataclass(frozen=True)
class Strata:
    """How many tokens each stratum has, and from that when its tokens' turns come."""

    counts: NDArray[np.int64]  # (STRATA,)
    seed: int

    @classmethod
    def of(cls, scan: Scan, seed: int) -> "Strata":
        """One pass over the scan."""
        counts = np.zeros(STRATA, np.int64)
        for part in scan.token_arrays(["prob", "entropy"]):
            counts += np.bincount(stratum(part), minlength=STRATA)
        return cls(counts, seed)

    @property
    def shares(self) -> NDArray[np.float64]:
        """(STRATA,) of each the part of the draws that it gets for as long as it lasts."""
        pools = (self.counts, self.counts > 0, self.counts * (np.arange(STRATA) % 2))
        return np.asarray(np.mean([p / max(p.sum(), 1) for p in pools], axis=0))

    def turns(self, strata: NDArray[np.int64], nth: NDArray[np.int64]) -> NDArray[np.float64]:
        """When the nth (from 0) token of a stratum is drawn: evenly spaced, from a random start."""
        start = hash_bits(self.seed, np.arange(STRATA)) / 2.0**64
        return np.asarray((nth + start[strata]) / self.shares[strata], np.float64)

    def quotas(self, size: int) -> NDArray[np.int64]:
        """(STRATA,) how many of each suffice to have the first `size` turns among them."""
        size, until = min(size, int(self.counts.sum())), float(size)
        while True:  # one more than the turns until then, another for rounding
            due = np.floor(until * self.shares).astype(np.int64)
            if np.minimum(due, self.counts).sum() >= size:
                return due + 2
            until *= 2


def draw_sample(scan: Scan, size: int, seed: int, columns: Sequence[str]) -> dict[str, Array]:
    """The sample of `size` tokens, or of all that there are, in the order of their turns.

    Gives the `columns`, and `part` (the index of the scan's part), `stratum` and `stratum_tokens`
    (how many tokens the scan has in it). Two passes. Raises `MissingColumn`.
    """
    strata = Strata.of(scan, seed)
    quotas, sample = strata.quotas(size), dict[str, Array]()
    for piece in _pieces(scan, [*scan.token_key, "prob", "entropy", *columns], seed):
        joined = {n: np.concatenate([sample[n], c]) if sample else c for n, c in piece.items()}
        sample = _first(joined, quotas, scan.token_key)
    turns = strata.turns(sample["stratum"], sample.pop("nth"))
    order = np.lexsort((sample.pop("key"), turns))[:size]
    sample["stratum_tokens"] = strata.counts[sample["stratum"]]
    return {name: values[order] for name, values in sample.items()}


def _pieces(scan: Scan, names: Sequence[str], seed: int) -> Iterator[Arrays]:
    for part in range(len(scan.manifest["parts"])):
        for piece in scan.token_arrays(list(dict.fromkeys(names)), part):
            parts = np.full(len(piece["prob"]), part)
            key = hash_bits(seed, *(piece[n] for n in scan.token_key))
            yield {**piece, "part": parts, "stratum": stratum(piece), "key": key}


def _first(
    columns: Arrays, quotas: NDArray[np.int64], token_key: Sequence[str]
) -> dict[str, Array]:
    """Of each stratum those with the smallest keys, and each one's rank `nth` among them."""
    strata = columns["stratum"]
    order = np.lexsort((*(columns[n] for n in reversed(token_key)), columns["key"], strata))
    ranked = strata[order]
    nth = np.arange(len(ranked)) - np.searchsorted(ranked, ranked)
    first = nth < quotas[ranked]
    sample = {n: values[order[first]] for n, values in columns.items()}
    return {**sample, "nth": nth[first]}


def hash_bits(*numbers: int | NDArray[np.integer]) -> NDArray[np.uint64]:
    """(N,) 64 random-looking bits that depend on the numbers alone (SplitMix64's finalizer)."""
    state = np.zeros(1, np.uint64)
    for number in numbers:
        state = (state ^ np.atleast_1d(number).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state
