"""Two scans of the same tokens side by side, by the key of a token, in constant memory."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from eaft_probe.errors import ScanError
from eaft_probe.scans.keys import Arrays, named_place, sortable
from eaft_probe.scans.scan import Scan

Keyed = tuple[NDArray[np.complex128], Arrays]  # keys (N,), rising, and the columns of their tokens


def joined_tokens(
    a: Scan, b: Scan, of_a: Sequence[str], of_b: Sequence[str]
) -> Iterator[tuple[Arrays, Arrays]]:
    """The columns `of_a` and `of_b` of the tokens that are in both, piece by piece.

    Units, parts and row groups may differ, and each may hold tokens that the other has not.
    Raises `ScanError` where one key has two different tokens or only one of the scans renders
    each turn by itself, and `MissingColumn`.
    """
    require_same_turns(a, b)
    left, right = _Cursor(a, of_a), _Cursor(b, of_b)
    while left.more() and right.more():
        end = min(left.keys[-1], right.keys[-1])  # of two complex numbers as NumPy sorts them
        in_a, in_b = _matched(left.up_to(end), right.up_to(end))
        _require_same(a, b, in_a, in_b)
        if len(in_a["token_id"]):
            yield in_a, in_b


class _Cursor:
    """Where a pass over a scan stands: what was read of it and not yet taken."""

    def __init__(self, scan: Scan, columns: Sequence[str]) -> None:
        self.scan = scan
        self.pieces = scan.token_arrays(sorted({*scan.token_key, "token_id", *columns}))
        self.keys = np.empty(0, np.complex128)
        self.columns: Arrays = {}
        self.last = np.complex128(-1)  # the key before `keys`

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
        """Takes the tokens with keys up to `end`."""
        n = int(np.searchsorted(self.keys, end, side="right"))
        taken = self.keys[:n], {name: c[:n] for name, c in self.columns.items()}
        self.last = self.keys[n - 1] if n else self.last
        self.keys, self.columns = self.keys[n:], {k: c[n:] for k, c in self.columns.items()}
        return taken


def _matched(a: Keyed, b: Keyed) -> tuple[Arrays, Arrays]:
    """The rows of both whose keys are in both."""
    (keys_a, in_a), (keys_b, in_b) = a, b
    if np.array_equal(keys_a, keys_b):  # the usual case costs no copy
        return in_a, in_b
    _, rows_a, rows_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
    return {n: c[rows_a] for n, c in in_a.items()}, {n: c[rows_b] for n, c in in_b.items()}


def require_same_turns(a: Scan, b: Scan) -> None:
    """Raises `ScanError` where one renders a row once and the other each of its turns."""
    if a.by_turn != b.by_turn:
        raise ScanError(
            f"{a.path} was made with --turns {a.turns} and {b.path} with --turns "
            f"{b.turns}: their tokens were scored in different contexts; scan the data again "
            f"with the same --turns"
        )


def _require_same(a: Scan, b: Scan, in_a: Arrays, in_b: Arrays) -> None:
    differing = np.flatnonzero(in_a["token_id"] != in_b["token_id"])
    if len(differing):
        i = differing[0]
        place = named_place(a.token_key, [in_a[name][i] for name in a.token_key])
        raise ScanError(
            f"{a.path} and {b.path} do not contain the same tokens: at {place} the first has token "
            f"{in_a['token_id'][i]}, the second {in_b['token_id'][i]}; where tokenizer, template "
            f"or format differ, --by distributions compares the two as wholes"
        )
