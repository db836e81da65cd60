"""Two scans of the same tokens side by side, by the key of a token, in constant memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eaft_probe.errors import ScanError
from eaft_probe.scans.keys import named_place, sortable
from eaft_probe.scans.scan import Scan

Arrays = dict[str, NDArray[Any]]  # name → (N,)
Keyed = tuple[NDArray[np.complex128], Arrays]  # places (N,), rising, and the columns there


def aligned(
    a: Scan, b: Scan, of_a: Sequence[str], of_b: Sequence[str]
) -> Iterator[tuple[Arrays, Arrays]]:
    """The columns `of_a` and `of_b` of the tokens that are in both, piece by piece.

    Units, parts and row groups may differ, and each may hold tokens that the other has not.
    Raises `ScanError` where one place holds two different tokens or only one of the scans renders
    each turn by itself, and `MissingColumn`.
    """
    require_same_turns(a, b)
    left, right = _Cursor(a, of_a), _Cursor(b, of_b)
    while left.more() and right.more():
        end = min(left.keys[-1], right.keys[-1])  # of two complex numbers as NumPy sorts them
        mine, theirs = _matched(left.up_to(end), right.up_to(end))
        _require_same(a, b, mine, theirs)
        if len(mine["token_id"]):
            yield mine, theirs


class _Cursor:
    """Where a pass over a scan stands: what was read of it and not yet taken."""

    def __init__(self, scan: Scan, columns: Sequence[str]) -> None:
        self.scan = scan
        self.pieces = scan.token_arrays(sorted({*scan.token_key, "token_id", *columns}))
        self.keys = np.empty(0, np.complex128)
        self.columns: Arrays = {}
        self.last = np.complex128(-1)  # the place before `keys`

    def more(self) -> bool:
        """Reads on where all was taken; False at the scan's end."""
        while not len(self.keys):
            piece = next(self.pieces, None)
            if piece is None:
                return False
            keys = sortable(piece, self.scan.token_key)
            if len(keys) and (keys[0] <= self.last or (keys[1:] <= keys[:-1]).any()):
                raise ScanError(
                    f"{self.scan.path} is damaged: its tokens are not sorted by "
                    f"{' and '.join(self.scan.token_key)}"
                )
            self.keys, self.columns = keys, piece
        return True

    def up_to(self, end: np.complex128) -> Keyed:
        """Takes what stands at places up to `end`."""
        n = int(np.searchsorted(self.keys, end, side="right"))
        taken = self.keys[:n], {name: c[:n] for name, c in self.columns.items()}
        self.last = taken[0][-1] if n else self.last
        self.keys, self.columns = self.keys[n:], {k: c[n:] for k, c in self.columns.items()}
        return taken


def _matched(a: Keyed, b: Keyed) -> tuple[Arrays, Arrays]:
    """The rows of both whose places are in both."""
    (left, mine), (right, theirs) = a, b
    if np.array_equal(left, right):  # the usual case costs no copy
        return mine, theirs
    at = np.searchsorted(right, left)
    inside = at < len(right)
    inside[inside] = right[at[inside]] == left[inside]
    return (
        {name: column[inside] for name, column in mine.items()},
        {name: column[at[inside]] for name, column in theirs.items()},
    )


def require_same_turns(a: Scan, b: Scan) -> None:
    """Raises `ScanError` where one renders a row once and the other each of its turns."""
    if a.by_turn != b.by_turn:
        raise ScanError(
            f"{a.path} was made with --turns {a.turns} and {b.path} with --turns "
            f"{b.turns}: their tokens stand in other contexts; scan the data again "
            f"with the same --turns"
        )


def _require_same(a: Scan, b: Scan, mine: Arrays, theirs: Arrays) -> None:
    other = np.flatnonzero(mine["token_id"] != theirs["token_id"])
    if len(other):
        i = other[0]
        place = named_place(a.token_key, [mine[name][i] for name in a.token_key])
        raise ScanError(
            f"{b.path} is no scan of the same tokens as {a.path}: at {place} one has token "
            f"{mine['token_id'][i]}, the other {theirs['token_id'][i]}; where tokenizer, template "
            f"or format differ, --by distributions compares the two as wholes"
        )
