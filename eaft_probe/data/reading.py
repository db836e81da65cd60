"""A record of the data → what is made of it, or why it is rejected: one way for all verbs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from eaft_probe.data.formats import Example, RowFormat
from eaft_probe.data.record import Record
from eaft_probe.errors import BadInput, RowError

Product = TypeVar("Product")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used."""

    row: int
    file: str
    line: int | None
    reason: str
    key: str = ""

    def as_line(self) -> dict[str, object]:
        """The row as `rejected.jsonl` has it."""
        return {n: getattr(self, n) for n in ("row", "file", "line", "reason")}


@dataclass(frozen=True)
class Reader(Generic[Product]):
    """Reads records. `make` raises `RowError` for an example of which it makes nothing.

    `strict`: the first such row ends everything, as `BadInput`.
    """

    row_format: RowFormat
    make: Callable[[Example], Product]
    strict: bool = False

    def __call__(self, record: Record) -> tuple[Mapping[str, Any], Product] | Rejected:
        """The row with what was made of it, or why nothing was."""
        key = ""
        try:
            row = record.parse()
            example = self.row_format(row)
            key = example.key
            return row, self.make(example)
        except (RowError, RecursionError) as error:
            # Parquet and memory hold rows of any depth.
            deep = isinstance(error, RecursionError)
            reason = "the row is nested too deeply" if deep else str(error)
            if self.strict:
                place = record.file if record.line is None else f"{record.file}:{record.line}"
                raise BadInput(f"row {record.row} ({place}): {reason}") from error
            return Rejected(record.row, record.file, record.line, reason, key)
