"""The plane of probability and entropy as the page draws it: counts by cell, sparse."""

import numpy as np
from numpy.typing import NDArray

from eaft_probe.analysis.aggregates import counted
from eaft_probe.analysis.histogram2d import ENTROPY_STEP, PROB_STEP
from eaft_probe.scans.scan import Scan
from eaft_probe.view.report.selection import Record

PANEL = 4  # of the finest cells: 1/64 by 1/8 nat, some 5 pixels of a panel across


def landscape(scan: Scan) -> Record:
    """The counts of all tokens and of the conflicts in the finest cells."""
    whole = counted(scan)
    conflicts = sparse(whole.conflict_plane().counts)
    return {**_plane(scan, whole.plane().counts, 1), "conflicts": conflicts}


def panel(scan: Scan) -> Record:
    """The counts of all tokens in coarser cells: 60 kB at most."""
    return _plane(scan, counted(scan).plane().coarse(PANEL), PANEL)


def _plane(scan: Scan, counts: NDArray[np.int64], by: int) -> Record:
    rows, columns = counts.shape
    return {
        "prob_cells": round(1 / PROB_STEP) // by,  # cells a unit
        "entropy_cells": round(1 / ENTROPY_STEP) // by,
        "rows": rows,
        "columns": columns,
        "counts": sparse(counts),
        "vocab_size": scan.manifest["model"].get("vocab_size"),
    }


def sparse(counts: NDArray[np.int64]) -> list[int]:
    """Row by row: the step to the next cell that is not empty, its count, and so on.

    >>> sparse(np.array([[0, 7], [0, 9]]))
    [1, 7, 2, 9]
    """
    flat = counts.ravel()
    at = np.flatnonzero(flat)
    pairs: list[int] = np.column_stack([np.diff(at, prepend=0), flat[at]]).ravel().tolist()
    return pairs
