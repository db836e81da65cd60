"""Units are read in order, one ahead, and what reading raises comes where the unit would."""

import threading
from typing import Any

import pytest

from eaft_probe.data.units import Unit
from eaft_probe.engines.ahead import ReadAhead
from eaft_probe.engines.ray import Actor
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


class Waits:
    """A scorer that ends unit 0 only once unit 1 has been read."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.read_second = threading.Event()
        self.scored: list[tuple[int, int]] = []

    def read(self, unit: Unit) -> int:
        if unit.index == 1:
            self.read_second.set()
        return unit.index

    def score(self, unit: Unit, rows: int) -> None:
        assert self.read_second.wait(30)
        self.scored.append((unit.index, rows))


def test_a_ray_actor_reads_the_unit_that_follows_beside_the_one_it_scores() -> None:
    scorer = Waits()
    actor = Actor(lambda progress, device: scorer, None)
    actor.facts()
    units = [Unit(n, ()) for n in range(3)]
    for unit, following in zip(units, [*units[1:], None], strict=True):
        actor.score(unit, following)
    actor.ahead.close()
    assert scorer.scored == [(0, 0), (1, 1), (2, 2)]
