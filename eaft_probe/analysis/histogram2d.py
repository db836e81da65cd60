"""The entropy–probability plane of a scan: exact 2-D histograms, out of core, mergeable."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from eaft_probe.scans.keys import Arrays
from eaft_probe.scans.scan import Scan

T = TypeVar("T", bound=np.generic)

# Cells of 1/256 in probability and 1/32 nat in entropy, up to 16 nats (the uniform distribution
# over 9 million tokens). Powers of two: a float32 times the step is exact, so is its cell, and
# 2 × 2 cells make one of the next coarser plane. Equal for every scan: planes add up.
PROB_BINS, ENTROPY_BINS = 256, 512
PROB_STEP, ENTROPY_STEP = 1 / 256, 1 / 32
CELLS = PROB_BINS * ENTROPY_BINS


@dataclass(frozen=True)
class Plane:
    """How many tokens lie where. Rows are entropy, rising; columns are probability, rising."""

    counts: NDArray[np.int64]  # (ENTROPY_BINS, PROB_BINS)

    def coarse(self, by: int) -> NDArray[np.int64]:
        """The counts with by × by cells summed; `by` a power of two up to 256."""
        return coarse(self.counts, by)

    def __add__(self, other: "Plane") -> "Plane":
        return Plane(self.counts + other.counts)


def coarse(values: NDArray[T], by: int) -> NDArray[T]:
    """(R, C) → (R / by, C / by), sums over squares of cells."""
    rows, columns = values.shape
    return np.asarray(values.reshape(rows // by, by, columns // by, by).sum((1, 3)))


def cell(columns: Arrays, by: int = 1) -> NDArray[np.int64]:
    """(N,) index of each token's cell in a flattened plane, of cells of by × by."""
    wide, high = PROB_BINS // by, ENTROPY_BINS // by
    across = (columns["prob"] * wide).astype(np.int64).clip(0, wide - 1)
    up = (columns["entropy"] / (ENTROPY_STEP * by)).astype(np.int64).clip(0, high - 1)
    return np.asarray(up * wide + across, np.int64)


def histogram(scan: Scan) -> Plane:
    """The whole scan's plane."""
    counts = np.zeros(CELLS, np.int64)
    for part in scan.token_arrays(["prob", "entropy"]):
        counts += np.bincount(cell(part), minlength=CELLS)
    return Plane(counts.reshape(ENTROPY_BINS, PROB_BINS))


# --- what can be reached ---


def least_entropy(prob: NDArray[np.floating]) -> NDArray[np.float64]:
    """The binary entropy −p ln p − (1 − p) ln(1 − p), nats: all the rest on one other token."""
    p = np.clip(np.asarray(prob, np.float64), 1e-12, 1 - 1e-12)
    return -p * np.log(p) - (1 - p) * np.log1p(-p)


def greatest_entropy(prob: NDArray[np.floating], vocab_size: int) -> NDArray[np.float64]:
    """The rest spread evenly: binary entropy + (1 − p) ln(V − 1), nats."""
    return np.asarray(least_entropy(prob) + (1 - prob) * np.log(max(vocab_size - 1, 1)))
