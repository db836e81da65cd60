"""The totals of units added up while a scan runs, so that few wait for its end.

    units/totals/part-00000.parquet …    one a unit
    units/totals/sum-1-00000.parquet …   of FOLD units each, which then go
    units/totals/sum-2-00000.parquet …   of FOLD of those, and so on

Which are added to which depends on the units' numbers alone, so the whole has the same bytes
whenever it was begun.
"""

from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from eaft_probe.analysis.partial_aggregates import added
from eaft_probe.scans.part_writer import part_file, write_parquet

FOLD = 64  # tables of up to 10 MB that are held at a time


def fold(units: Path, until: int) -> None:
    """Adds up what the latest of the first `until` units make whole, as far as they are there."""
    level, count = 0, until
    while count >= FOLD:
        whole = count // FOLD
        for block in range(max(0, whole - 3), whole):  # workers finish out of order
            _fold_block(units, level, block)
        level, count = level + 1, whole


def folded(units: Path, count: int) -> pa.Table:
    """The totals of all units."""
    level, left = 0, list[Path]()
    while True:
        whole = count // FOLD
        for block in range(whole):
            _fold_block(units, level, block)
        left = [_file(units, level, i) for i in range(whole * FOLD, count)] + left
        if not whole:
            return added([_read(file) for file in left])
        level, count = level + 1, whole


def _fold_block(units: Path, level: int, block: int) -> None:
    """Nothing, where it is done or something lacks."""
    target = _file(units, level + 1, block)
    members = [_file(units, level, block * FOLD + i) for i in range(FOLD)]
    if target.exists() or _covered(units, level + 1, block):
        return
    if all(file.exists() for file in members):
        with suppress(FileNotFoundError):  # another run is quicker, and its sum has the same bytes
            write_parquet(target, added([_read(file) for file in members]))
        for file in members:  # once the sum stands
            file.unlink(missing_ok=True)


def _covered(units: Path, level: int, index: int) -> bool:
    """Whether a higher sum has it."""
    higher = [(level + up, index // FOLD**up) for up in range(1, 6)]
    return any(_file(units, *place).exists() for place in higher)


def _file(units: Path, level: int, index: int) -> Path:
    if not level:
        return part_file(units, "totals", index)
    return units.absolute() / "totals" / f"sum-{level}-{index:05d}.parquet"


def _read(file: Path) -> pa.Table:
    return pq.read_table(file, partitioning=None)
