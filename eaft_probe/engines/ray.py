"""The Ray engine: units run on actors of a cluster, each of which loads the model once.

Actors come up as the cluster has room for them, so machines may join and leave while a scan runs.
A lost actor's unit goes to another, and a new actor waits for room. Actors end with this process.
An actor that does nothing (stopped, or waiting for a file server for good) looks busy to Ray: it is
killed when it has been silent for longer than any unit explains.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from eaft_probe.data.units import Unit
from eaft_probe.engines.ahead import ReadAhead
from eaft_probe.engines.unit_queue import DEATHS, Facts, Job, Load, UnitQueue, described
from eaft_probe.errors import BadInput, ProbeError, one_line

LOOK = 1.0  # seconds after which an interruption is seen
ROOM = 60  # looks after which it is said that no actor has come up
# A unit may take TIMES as long as the slowest so far, and at least LEAST seconds: in 14 data sets,
# with 4 and with 256 rows a unit, none had more than 2.9 times the bytes of the largest before it.
# The rest allows for slower machines, and for work that grows faster than the bytes.
TIMES, LEAST = 20, 300.0


def run(job: Job) -> None:
    """Scores every unit. An exception ends the run; finished units stay.

    Raises what an actor raises, `BadInput` without Ray or its cluster, or `ProbeError` where actors
    die over the same unit.
    """
    with _cluster(job) as ray:
        ActorPool(ray, job).run()


@contextmanager
def _cluster(job: Job) -> Iterator[Any]:
    """The cluster at --address, or one that lives as long as this scan."""
    try:
        import ray
    except ImportError as error:
        raise BadInput("Ray is not installed: pip install 'eaft-probe[ray]'") from error
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


class UnitProgress:
    """A `Progress` that counts; the driver gets the counts when the unit is done."""

    def __init__(self) -> None:
        self.rows = self.tokens = 0

    def start(self, what: str, rows: int) -> None: ...

    def advance(self, rows: int, tokens: int) -> None:
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens

    def note(self, text: str) -> None: ...


class Actor:
    """A model on some machine of the cluster."""

    def __init__(self, load: Load, device: str | None) -> None:
        self.load, self.device, self.progress = load, device, UnitProgress()

    def facts(self) -> Facts:
        """Loads the model: of what a constructor raises, Ray would hand on no more than a text."""
        self.scorer = self.load(self.progress, self.device)
        self.ahead = ReadAhead(self.scorer.read)
        return dict(self.scorer.facts)

    def score(self, unit: Unit, following: Unit | None) -> tuple[int, int]:
        """Writes the unit's part and gives its (rows, tokens). `following`, which this actor is
        given next, is read meanwhile."""
        self.progress.rows = self.progress.tokens = 0
        if not self.ahead:  # else the unit has been read as the following one
            self.ahead.put(unit)
        if following:
            self.ahead.put(following)
        self.scorer.score(*self.ahead.pop())
        return self.progress.rows, self.progress.tokens


class Task(NamedTuple):
    """What an actor is doing."""

    actor: Any
    unit: Unit | None  # None: it loads the model
    following: Unit | None  # which it reads meanwhile
    since: float  # seconds of the monotonic clock


class ActorPool:
    """The actors of one run, and what each of them is doing."""

    def __init__(self, ray: Any, job: Job) -> None:
        self.ray, self.job = ray, job
        gpu = (job.device or "cuda").startswith("cuda")
        self.needs = {"num_gpus": job.gpus} if gpu else {"num_cpus": job.threads or 1}
        self.kind = ray.remote(**self.needs, max_restarts=0)(Actor)
        self.room = ray.cluster_resources().get("GPU" if gpu else "CPU", 1)
        self.room //= next(iter(self.needs.values()))
        self.tasks: dict[Any, Task] = {}  # by the reference to their result
        self.idle: list[tuple[Any, Unit | None]] = []  # actors, each with the unit it has read
        self.queue: UnitQueue | None = None  # once a model is loaded
        self.unloaded = 0  # actors that died before their model was loaded
        self.longest = math.inf  # seconds of the slowest finished unit

    def run(self) -> None:
        for _ in range(min(self.job.workers or max(1, int(self.room)), self.job.units)):
            self._start_actor()
        looks = 0
        while not self._finished():
            looks += 1
            if looks == ROOM and self.queue is None:
                self.job.progress.note(
                    f"no actor has started: the cluster has no room, or loading takes long. "
                    f"Each actor needs {self.needs}"
                )
            ready, _ = self.ray.wait(list(self.tasks), timeout=LOOK)
            for reference in ready:
                self._receive(reference, self.tasks.pop(reference))
            if not ready:  # else this process may have slept, and there is more to hear
                self._replace_silent()

    def _start_actor(self) -> None:
        """A new actor; it stays in the queue of the cluster until there is room."""
        actor = self.kind.remote(self.job.load, self.job.device)
        self.tasks[actor.facts.remote()] = Task(actor, None, None, time.monotonic())

    def _finished(self) -> bool:
        if self.queue is None:
            return False
        idle, self.idle = self.idle, []
        for actor, read in idle:
            if unit := read or self.queue.next():
                self._begin(actor, unit)
            else:
                self.idle.append((actor, None))
        return self.queue.over() and not any(task.unit for task in self.tasks.values())

    def _begin(self, actor: Any, unit: Unit) -> None:
        """Where units are left for all actors, this one gets another to read ahead."""
        assert self.queue is not None
        following = self.queue.next_of_many(len(self.tasks) + len(self.idle) + 1)
        self.tasks[actor.score.remote(unit, following)] = Task(
            actor, unit, following, time.monotonic()
        )

    def _receive(self, reference: Any, task: Task) -> None:
        errors = self.ray.exceptions
        try:
            result = self.ray.get(reference)
        except errors.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except errors.RayError as error:  # the actor, its machine or the connection is gone
            self._replace(task, one_line(error, 200))
            return
        self.idle.append((task.actor, task.following))
        if task.unit is None:
            self.unloaded = 0
            self.queue = self.queue or UnitQueue(self.job.begin(result))
        else:
            took = time.monotonic() - task.since
            self.longest = took if math.isinf(self.longest) else max(self.longest, took)
            self.job.progress.advance(*result)

    def _replace_silent(self) -> None:
        """Kills actors that are silent for too long and gives their units to others. Until a first
        unit is finished, nobody knows how long one may take."""
        for reference, task in list(self.tasks.items()):
            silence = time.monotonic() - task.since
            if task.unit is not None and silence > self._patience(task.unit):
                del self.tasks[reference]
                self._replace(task, f"was silent for {silence:.0f} s")

    def _patience(self, unit: Unit) -> float:
        """Seconds; doubled at each further try, since the unit itself may be that slow."""
        assert self.queue is not None
        tries = self.queue.deaths.get(unit.index, 0)
        return float(max(LEAST, TIMES * self.longest) * 2**tries)

    def _replace(self, task: Task, why: str) -> None:
        """Gives the actor's units to others and starts another actor."""
        self.ray.kill(task.actor)
        self.unloaded += task.unit is None
        if self.unloaded >= DEATHS:
            raise ProbeError(f"{DEATHS} actors ended while they loaded the model: {why}")
        if task.unit is not None:
            assert self.queue is not None
            self.queue.give_back(task.unit, why)
            self.queue.returned += [task.following] if task.following else []
            self.job.progress.note(
                f"an actor is lost ({why}); {described(task.unit)} are scored again"
            )
        self._start_actor()
