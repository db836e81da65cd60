"""Sums along the answer: entropy, nll and conflicts by a token's place in its turn."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.scans.keys import Arrays

# Positions 0 to 15 one by one, then bins a quarter of an octave wide, up to 2^24 tokens.
EDGES = np.unique(
    np.concatenate([np.arange(17), 2 ** np.arange(4.25, 24.1, 0.25)]).astype(np.int64)
)
BINS = len(EDGES) - 1
READS = ("example", "turn", "position", "entropy", "logprob", "prob")
SHAPES = {"counts": (BINS,), "sums": (BINS, 3), "squares": (BINS, 3)}


def sums_by_position(
    pieces: Iterable[Arrays], rule: ConflictRule
) -> dict[str, NDArray[np.float64]]:
    """The arrays SHAPES from pieces with the columns READS: tokens by bin, and of entropy, nll and
    conflict (0 or 1) the sums and the sums of squares."""
    counts, sums, squares = (np.zeros(shape) for shape in SHAPES.values())
    for steps, columns in placed(pieces):
        index = np.minimum(np.searchsorted(EDGES, steps, side="right") - 1, BINS - 1)
        counts += np.bincount(index, minlength=BINS)
        values = (columns["entropy"], -columns["logprob"], rule(columns).astype(np.float64))
        for i, value in enumerate(values):
            sums[:, i] += np.bincount(index, value, BINS)
            squares[:, i] += np.bincount(index, np.float64(value) ** 2, BINS)
    return {"counts": counts, "sums": sums, "squares": squares}


def placed(pieces: Iterable[Arrays]) -> Iterator[tuple[NDArray[np.int64], Arrays]]:
    """(N,) index of each token in its turn's trained span, and the columns.

    Tokens are sorted, so a turn is a run; one that goes on in the next piece is carried over.
    """
    last, began = (-1, -1), 0
    for columns in pieces:
        example, turn, position = (columns[c].astype(np.int64) for c in READS[:3])
        if not len(example):
            continue
        changes = (np.diff(example) != 0) | (np.diff(turn) != 0)
        begins = np.append((example[0], turn[0]) != last, changes)
        first = np.append(began, position[begins])[np.cumsum(begins)]
        last, began = (int(example[-1]), int(turn[-1])), int(first[-1])
        yield position - first, columns
