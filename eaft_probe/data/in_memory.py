"""Rows that a program holds, as what can be read again and again."""

import io
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from eaft_probe.data.standard_input import FromStart
from eaft_probe.errors import DataError, one_line

KINDS = "a list of rows, a datasets.Dataset, a pandas frame or a generator of rows"


def rows_in_memory(data: Any, split: str) -> Iterable[object]:
    """The rows of a list, a data set or its split, a pandas frame; a copy of those of a generator.

    Raises `DataError` for anything else.
    """
    if isinstance(data, Mapping):  # a DatasetDict
        if split not in data:
            names = ", ".join(map(str, data)) or "none"
            raise DataError(
                f"data is a {type(data).__name__} without a split {split!r}; give split=, one of "
                f"{names}, or {KINDS}"
            )
        return rows_in_memory(data[split], split)
    if hasattr(data, "itertuples"):
        return FrameRows(data)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, bytes):
        return data  # type: ignore[no-any-return]
    if not isinstance(data, Iterable) or isinstance(data, bytes):
        raise DataError(f"data should be a path, {KINDS}; found a {type(data).__name__}")
    of_arrow = hasattr(data, "features")  # a streamed data set
    return CopiedRows(map(_plain_row, data) if of_arrow else data)


class FrameRows:
    """The rows of a pandas frame as dictionaries; a missing value is None."""

    def __init__(self, frame: Any) -> None:
        self.frame = frame
        self._names = [str(name) for name in frame.columns]
        if twice := [name for name in self._names if self._names.count(name) > 1]:
            raise DataError(f"the frame has the column {twice[0]!r} twice; rename one of them")

    def __iter__(self) -> Iterator[object]:
        from pandas import isna

        for cells in self.frame.itertuples(index=False, name=None):
            missing = (isna(cell) is True for cell in cells)  # of a list: an array
            plain = (None if m else _plain(cell) for cell, m in zip(cells, missing, strict=True))
            yield dict(zip(self._names, plain, strict=True))


class CopiedRows:
    """Rows that can be taken only once, in a file, so that memory does not grow with them.

    The file has no name, so nobody else can write what is unpickled here.
    """

    def __init__(self, rows: Iterable[object]) -> None:
        self._copy = tempfile.TemporaryFile()  # noqa: SIM115  open as long as this is read
        self._count = 0
        for row in rows:
            try:
                self._copy.write(pickle.dumps(row, pickle.HIGHEST_PROTOCOL))
            except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
                raise DataError(f"row {self._count} cannot be copied: {one_line(error)}") from error
            self._count += 1
        self._copy.flush()

    def __iter__(self) -> Iterator[object]:
        copy = io.BufferedReader(FromStart(self._copy.fileno()))
        for _ in range(self._count):
            yield pickle.load(copy)


def _plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with all its columns, also those that are null."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    """A cell in Python's own types, without the nulls that fill up structs in Arrow."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value
