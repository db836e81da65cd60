"""Rows are read and rendered beside the forward pass of the unit before, so that it need not wait.

A GPU takes the tokens of a small model faster than one core renders them.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from eaft_probe.data.units import Unit

AHEAD = 1  # units besides the one at hand; each is at most 1 MB of source


class ReadAhead:
    """Units in the order in which they came, being read by a thread of their own."""

    def __init__(self, read: Callable[[Unit], Any]) -> None:
        self.read, self.pool = read, ThreadPoolExecutor(1, "reading ahead")
        self.waiting: deque[tuple[Unit, Future[Any]]] = deque()

    def __len__(self) -> int:
        return len(self.waiting)

    def put(self, unit: Unit) -> None:
        self.waiting.append((unit, self.pool.submit(self.read, unit)))

    def pop(self) -> tuple[Unit, Any]:
        """The first unit, and what was read of it. Raises what reading it raised."""
        unit, rows = self.waiting.popleft()
        return unit, rows.result()

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
