"""The Ray engine: units run on actors of a cluster, each of which loads the model once.

Actors come up as the cluster has room for them, so machines may join and leave while a scan runs.
A lost actor's unit goes to another, and a new actor waits for room. Actors end with this process.
An actor that is there and does nothing (stopped, or waiting for a file server for good) looks to
Ray like one at work: it is killed after a silence that no unit explains.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from eaft_probe.data.units import Unit
from eaft_probe.engines.ahead import ReadAhead
from eaft_probe.engines.unit_queue import DEATHS, Job, Load, Scorer, Waiting, said
from eaft_probe.errors import BadInput, ProbeError, one_line

LOOK = 1.0  # seconds after which an interruption is seen
ROOM = 60  # looks after which it is said that no actor has come up
# A unit may take so many times as long as the longest so far, but at least so many seconds: in 14
# data sets, of 4 and of 256 rows a unit, none had more than 2.9 times the bytes of the largest
# before it. The rest is for slower machines, and for what grows faster than the bytes.
TIMES, LEAST = 20, 300.0


def run(job: Job) -> None:
    """Scores every unit. An exception ends the run; finished units stay.

    Raises what an actor raises, `BadInput` without Ray or its cluster, or `ProbeError` where actors
    die over the same unit.
    """
    with _cluster(job) as ray:
        Cluster(ray, job).run()


@contextmanager
def _cluster(job: Job) -> Iterator[Any]:
    """The cluster at --address, or one that lives as long as this scan."""
    try:
        import ray
    except ImportError as error:
        raise BadInput("--engine ray needs Ray: pip install 'eaft-probe[ray]'") from error
    joined = not ray.is_initialized()
    try:
        if joined:
            ray.init(
                job.address or "local",
                log_to_driver=False,
                logging_level="ERROR",
                include_dashboard=False if job.address is None else None,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"--address {job.address}: no Ray cluster there" if job.address else "no Ray here"
        raise BadInput(f"{where}: {one_line(error)}") from error
    try:
        yield ray
    finally:
        if joined:
            ray.shutdown()


class Told:
    """A `Progress` that counts what a unit has done; the driver is told with the unit's end."""

    def __init__(self) -> None:
        self.rows = self.tokens = 0

    def start(self, what: str, rows: int) -> None: ...

    def advance(self, rows: int, tokens: int) -> None:
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens

    def note(self, text: str) -> None: ...


class Actor:
    """A loaded model on some machine of the cluster."""

    def __init__(self, load: Load, device: str | None) -> None:
        self.told = Told()
        self.scorer: Scorer = load(self.told, device)
        self.ahead = ReadAhead(self.scorer.read)

    def facts(self) -> Any:
        return dict(self.scorer.facts)

    def score(self, unit: Unit, following: Unit | None) -> tuple[int, int]:
        """(rows, tokens) of the unit, whose part is written. The unit that this actor is given next
        is read meanwhile."""
        self.told.rows = self.told.tokens = 0
        if not self.ahead:  # else it was the one that followed, and is read already
            self.ahead.put(unit)
        if following:
            self.ahead.put(following)
        self.scorer.score(*self.ahead.pop())
        return self.told.rows, self.told.tokens


class Task(NamedTuple):
    """What an actor is at."""

    actor: Any
    unit: Unit | None  # None: it loads
    following: Unit | None  # what it reads meanwhile
    since: float  # seconds of a clock that only goes on


class Cluster:
    """The actors of one run, and what each of them is at."""

    def __init__(self, ray: Any, job: Job) -> None:
        self.ray, self.job = ray, job
        gpu = (job.device or "cuda").startswith("cuda")
        self.needs = {"num_gpus": 1} if gpu else {"num_cpus": job.threads or 1}
        self.kind = ray.remote(**self.needs, max_restarts=0)(Actor)
        self.room = ray.cluster_resources().get("GPU" if gpu else "CPU", 1)
        self.room //= next(iter(self.needs.values()))
        self.busy: dict[Any, Task] = {}  # what is to come → whose it is
        self.idle: list[tuple[Any, Unit | None]] = []  # actors, and the unit each of them has read
        self.waiting: Waiting | None = None  # until a model stands
        self.unloaded = 0  # actors that died before their model stood
        self.longest = math.inf  # seconds that a unit took, of those that are done

    def run(self) -> None:
        for _ in range(min(self.job.workers or max(1, int(self.room)), self.job.units)):
            self._hire()
        looks = 0
        while not self._finished():
            looks += 1
            if looks == ROOM and self.waiting is None:
                self.job.progress.note(
                    f"no actor works yet: the cluster has no room, or loading "
                    f"takes long; each needs {self.needs}"
                )
            ready, _ = self.ray.wait(list(self.busy), timeout=LOOK)
            for coming in ready:
                self._hear(coming, self.busy.pop(coming))
            if not ready:  # else this process may have slept, and there is more to hear
                self._give_up()

    def _hire(self) -> None:
        """A new actor; it stays in the queue of the cluster until there is room."""
        actor = self.kind.remote(self.job.load, self.job.device)
        self.busy[actor.facts.remote()] = Task(actor, None, None, time.monotonic())

    def _finished(self) -> bool:
        if self.waiting is None:
            return False
        held, self.idle = self.idle, []
        for actor, read in held:
            if unit := read or self.waiting.next():
                self._begin(actor, unit)
            else:
                self.idle.append((actor, None))
        return self.waiting.over() and not any(task.unit for task in self.busy.values())

    def _begin(self, actor: Any, unit: Unit) -> None:
        """Where units are left for all actors, this one gets another to read ahead."""
        assert self.waiting is not None
        following = self.waiting.next_of_many(len(self.busy) + len(self.idle) + 1)
        coming = actor.score.remote(unit, following)
        self.busy[coming] = Task(actor, unit, following, time.monotonic())

    def _hear(self, coming: Any, task: Task) -> None:
        errors = self.ray.exceptions
        try:
            found = self.ray.get(coming)
        except errors.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except errors.RayError as error:  # the actor, its machine or the way to it is gone
            self._lose(task, one_line(error, 200))
            return
        self.idle.append((task.actor, task.following))
        if task.unit is None:
            self.unloaded = 0
            self.waiting = self.waiting or Waiting(self.job.begin(found))
        else:
            took = time.monotonic() - task.since
            self.longest = took if math.isinf(self.longest) else max(self.longest, took)
            self.job.progress.advance(*found)

    def _give_up(self) -> None:
        """Takes their units from actors that are silent for too long. They are killed first, so no
        unit has two; until one is done, nobody knows how long that may take."""
        for coming, task in list(self.busy.items()):
            silence = time.monotonic() - task.since
            if task.unit is not None and silence > self._patience(task.unit):
                del self.busy[coming]
                self._lose(task, f"was silent for {silence:.0f} s")

    def _patience(self, unit: Unit) -> float:
        """Seconds; twice as many at each further try, should it be the unit that takes so long."""
        assert self.waiting is not None
        tries = self.waiting.deaths.get(unit.index, 0)
        return float(max(LEAST, TIMES * self.longest) * 2**tries)

    def _lose(self, task: Task, why: str) -> None:
        """An actor's units go to others, and a new one waits for room."""
        self.ray.kill(task.actor)
        self.unloaded += task.unit is None
        if self.unloaded >= DEATHS:
            raise ProbeError(f"{DEATHS} actors ended while they loaded the model: {why}")
        if task.unit is not None:
            assert self.waiting is not None
            self.waiting.give_back(task.unit, why)
            self.waiting.back += [task.following] if task.following else []
            self.job.progress.note(f"an actor is lost ({why}); {said(task.unit)} are scored again")
        self._hire()
