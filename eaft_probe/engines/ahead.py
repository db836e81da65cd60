"""Rows are read and rendered during the forward pass of the unit before, which need not wait.

A GPU takes the tokens of a small model faster than one core renders them.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from eaft_probe.data.units import Unit

Rows = TypeVar("Rows")  # what reading a unit gives

AHEAD = 1  # units besides the one at hand; each is at most 1 MB of source


class ReadAhead(Generic[Rows]):
    """Units in the order in which they came, being read by a thread of their own."""

    def __init__(self, read: Callable[[Unit], Rows]) -> None:
        self.read, self.pool = read, ThreadPoolExecutor(1, "reading ahead")
        self.waiting: deque[tuple[Unit, Future[Rows]]] = deque()

    def __len__(self) -> int:
        return len(self.waiting)

    def put(self, unit: Unit) -> None:
        self.waiting.append((unit, self.pool.submit(self.read, unit)))

    def pop(self) -> tuple[Unit, Rows]:
        """The first unit, and what was read of it. Raises what reading it raised."""
        unit, rows = self.waiting.popleft()
        return unit, rows.result()

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
