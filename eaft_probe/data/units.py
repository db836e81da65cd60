"""A scan is planned as units: consecutive rows that are scored, written and resumed as one part."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from eaft_probe.data.record import Record
from eaft_probe.data.sources import Source
from eaft_probe.errors import DataError

UNIT_BYTES = 1_000_000  # bounds the memory of a unit, however long its rows are


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows that become one part."""

    index: int
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of a source count: the first `limit`, or `sample` of those drawn at random."""

    limit: int | None = None
    sample: int | None = None
    seed: int = 0

    def rows(self, source: Source) -> frozenset[int] | None:
        """The drawn row numbers; None where all (up to the limit) are taken."""
        if self.sample is None:
            return None
        total = sum(1 for _ in self.records(source, None))
        return frozenset(random.Random(self.seed).sample(range(total), min(self.sample, total)))

    def records(self, source: Source, drawn: frozenset[int] | None) -> Iterator[Record]:
        """The rows up to the limit, or those of them that were drawn."""
        for record in islice(source.records(), self.limit and max(self.limit, 0)):
            if drawn is None or record.row in drawn:
                yield record


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """The units of a source, cut the same way every time they are read. Nothing is tokenized."""

    source: Source
    selection: Selection
    rows_per_unit: int
    drawn: frozenset[int] | None
    rows: int
    count: int
    files: frozenset[str] = frozenset()  # that rows come from

    @classmethod
    def of(cls, source: Source, selection: Selection, rows_per_unit: int) -> "UnitPlan":
        """Reads the source once to count it. Raises `DataError` where it has no rows."""
        draft = cls(source, selection, rows_per_unit, selection.rows(source), 0, 0)
        rows, count, files = 0, 0, set[str]()
        for unit in draft.units():
            rows, count = rows + len(unit.records), count + 1
            files |= {record.file for record in unit.records}
        if not rows:
            raise DataError(f"{source.name} has no rows")
        return replace(draft, rows=rows, count=count, files=frozenset(files))

    def units(self) -> Iterator[Unit]:
        """Raises `ProbeError` where the data changed before a unit was read to its end."""
        records, size, index = list[Record](), 0, 0
        for record in self.selection.records(self.source, self.drawn):
            more = record.size
            full = len(records) == self.rows_per_unit or size + more > UNIT_BYTES
            if records and full:
                self.source.require_unchanged()
                yield Unit(index, tuple(records))
                records, size, index = [], 0, index + 1
            records.append(record)
            size += more
        if records:
            self.source.require_unchanged()
            yield Unit(index, tuple(records))
