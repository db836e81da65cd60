"""What tells the examples and the tokens of a scan apart.

    --turns together   an example is a row: (example); a token is (example, position)
    --turns each       an example is one turn of a row: (example, turn); a token is
                       (example, turn, position)

The parts are sorted by these keys.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[Any]  # (N,) of numbers, or of texts as objects
Arrays = Mapping[str, Array]  # columns by name

TOGETHER, EACH = ("example",), ("example", "turn")
POSITION_BITS = 31  # positions are int32


def key_of(examples: pa.Table) -> tuple[str, ...]:
    """The key of a part's examples: only where each is one turn of a row have they a `turn`."""
    by_turn = "turn" in examples.column_names and examples["turn"].null_count < len(examples)
    return EACH if by_turn else TOGETHER


def sortable(columns: Arrays | pa.Table, key: Sequence[str]) -> NDArray[np.complex128]:
    """(N,) numbers that are equal, and sort, as the `key` columns do.

    NumPy sorts complex numbers by the real part, then by the imaginary one. Both are exact: rows
    are below 2^53, turn · 2^31 + position is below 2^46.
    """
    rest = {name: np.asarray(columns[name], np.int64) for name in key if name != "example"}
    keys = np.empty(len(columns["example"]), np.complex128)
    keys.real = np.asarray(columns["example"])
    keys.imag = (rest.get("turn", 0) << POSITION_BITS) + rest.get("position", 0)
    return keys


def named_place(key: Sequence[str], values: Sequence[object]) -> str:
    """A place in words: "example 3, turn 1, position 17"."""
    return ", ".join(f"{name} {value}" for name, value in zip(key, values, strict=True))
