"""What an engine is given to run, and the queue of units."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from eaft_probe.data.units import Unit
from eaft_probe.errors import ProbeError
from eaft_probe.progress import Progress

DEATHS = 3  # a unit that has ended so many workers is not given to another

Facts = Mapping[str, Any]  # what the manifest says of a loaded model
Message = tuple[str, Any]  # between processes: a name and its value


class Scorer(Protocol):
    """A loaded model that scores units."""

    @property
    def facts(self) -> Facts: ...

    def read(self, unit: Unit) -> Any:
        """The unit's rows as tokens; what `score` takes. No model is needed, any thread will do."""

    def score(self, unit: Unit, rows: Any) -> None:
        """Writes the unit's part, whole or not at all."""


class Load(Protocol):
    """Makes a scorer, in whatever process that is. It travels there, the model does not."""

    def __call__(self, progress: Progress, device: str | None = None) -> Scorer: ...


@dataclass(frozen=True)
class Job:
    """The units of a scan, and all that scoring them needs.

    `begin` is called once, when the first model stands: it makes the folder ready and gives the
    units that are not done, in order.
    """

    load: Load
    begin: Callable[[Facts], Iterator[Unit]]
    progress: Progress
    units: int  # there are at most so many
    device: str | None = "cpu"  # "cuda": any GPU; None: as the settings say, by themselves
    workers: int | None = None  # None: as many as the engine finds right
    threads: int | None = None  # of the CPU, that each of them takes
    gpus: int = 1  # that each of them takes
    address: str | None = None


@dataclass
class UnitQueue:
    """The units to be scored; those that were given back come first."""

    units: Iterator[Unit]
    returned: list[Unit] = field(default_factory=list)
    deaths: dict[int, int] = field(default_factory=dict)

    def next(self) -> Unit | None:
        return self.returned.pop(0) if self.returned else next(self.units, None)

    def over(self) -> bool:
        """Whether no unit waits, even where nobody is there to take one."""
        self.returned = self.returned or [*islice(self.units, 1)]
        return not self.returned

    def next_of_many(self, idle: int) -> Unit | None:
        """The next unit, where at least `idle` others wait behind it."""
        self.returned += islice(self.units, max(0, idle + 1 - len(self.returned)))
        return self.returned.pop(0) if len(self.returned) > idle else None

    def give_back(self, unit: Unit, why: str) -> None:
        """The unit's worker died. Raises `ProbeError` where it was the third."""
        self.deaths[unit.index] = self.deaths.get(unit.index, 0) + 1
        if self.deaths[unit.index] >= DEATHS:
            raise ProbeError(
                f"{described(unit)} ended {DEATHS} workers (the last one {why}). "
                f"Finished units are kept. A smaller --max-length or --tokens-per-batch needs "
                f"less memory"
            )
        self.returned.append(unit)


def described(unit: Unit) -> str:
    """A unit and its rows, for people."""
    first, last = unit.records[0], unit.records[-1]
    return f"unit {unit.index}, rows {first.row} to {last.row} of {first.file},"
