"""The local engine: every unit in this process, in order."""

from collections.abc import Callable, Iterable

from eaft_probe.data.units import Unit


def run(units: Iterable[Unit], score: Callable[[Unit], None]) -> None:
    """Calls `score` on every unit. An exception ends the run; finished units stay."""
    for unit in units:
        score(unit)
