"""Units are read in order, one ahead, and what reading raises comes where the unit would."""

import threading

import pytest

from eaft_probe.data.units import Unit
from eaft_probe.engines.ahead import ReadAhead
from eaft_probe.errors import RowError


def test_in_order_and_in_another_thread() -> None:
    ahead = ReadAhead(lambda unit: (unit.index, threading.get_ident()))
    units = [Unit(n, ()) for n in range(5)]
    for unit in units:
        ahead.put(unit)
    found = [ahead.pop() for _ in units]
    ahead.close()
    assert [(u, rows[0]) for u, rows in found] == [(u, u.index) for u in units]
    assert {rows[1] for _, rows in found} != {threading.get_ident()}


def test_what_reading_raises_is_raised_with_its_unit() -> None:
    def read(unit: Unit) -> int:
        if unit.index:
            raise RowError("bad")
        return 0

    ahead = ReadAhead(read)
    ahead.put(Unit(0, ()))
    ahead.put(Unit(1, ()))
    assert ahead.pop()[1] == 0
    with pytest.raises(RowError, match="bad"):
        ahead.pop()
    assert not ahead
    ahead.close()
