"""The gates of an objective on the windows of a step, from the columns of the scan."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eaft_probe.errors import BadInput
from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.scan_columns import resolved, token_columns
from eaft_probe.scans.keys import sortable
from eaft_probe.scans.scan import Scan
from eaft_probe.verbs.forecast.first_order import reference_scan
from eaft_probe.verbs.forecast.passes import Rows


def step_gates(scan: Scan, objective: Objective, rows: Rows) -> list[NDArray[np.float32]]:
    """(T,) gates of each window, from the scan's columns; 0 where nothing is trained. Raises
    `BadInput` where the scan has other tokens."""
    base = reference_scan(scan) if objective.name == "rho" else None
    frozen = resolved(objective, scan, base)
    key = scan.token_key
    reads = [*dict.fromkeys([*frozen.reads, *key])]
    numbers = rows.numbers
    known, keys = list[NDArray[np.float32]](), list[NDArray[np.complex128]]()
    for columns in token_columns(scan, reads, base):
        inside = np.isin(columns["example"], numbers)
        own = {n: c[inside] for n, c in columns.items()}
        known.append(np.asarray(frozen(own), np.float32))
        keys.append(sortable(own, key))
    gates, places = np.concatenate(known), np.concatenate(keys)
    return list(_by_window(gates, places, rows, key))


def _by_window(
    gates: NDArray[np.float32], places: NDArray[Any], rows: Rows, key: Sequence[str]
) -> Iterator[NDArray[np.float32]]:
    for window, turn in zip(rows.windows, rows.turns, strict=True):
        at = np.flatnonzero(window.trained)
        columns = {
            "example": np.full(len(at), window.example),
            "turn": np.full(len(at), turn or 0),
            "position": window.start + at,
        }
        wanted = sortable({n: columns[n] for n in key}, key)
        index = np.searchsorted(places, wanted).clip(max=max(len(places) - 1, 0))
        if not len(places) or not np.array_equal(places[index], wanted):
            raise BadInput(
                f"the scan has other tokens in row {window.example} than were read now; scan the "
                f"data again"
            )
        of_window = np.zeros(len(window.ids), np.float32)
        of_window[at] = gates[index]
        yield of_window
