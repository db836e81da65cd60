"""The local engine: this process alone, or one worker process a GPU, or as many as are asked for.

This process plans and shows the one progress bar; workers load the model and take one unit after
the other. A worker that dies is replaced and its unit given to another.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

import torch

from eaft_probe.data.units import Unit
from eaft_probe.engines.ahead import AHEAD, ReadAhead
from eaft_probe.engines.unit_queue import DEATHS, Facts, Job, Message, UnitQueue, described
from eaft_probe.errors import ProbeError


def run(job: Job) -> None:
    """Scores every unit. An exception ends the run; finished units stay.

    Raises what a worker raises, or `ProbeError` where workers die over the same unit.
    """
    count = min(job.workers or _groups(job), job.units)
    if count > 1:
        WorkerPool(job, count).run()
        return
    threads = torch.get_num_threads()
    try:
        _run_here(job)
    finally:
        torch.set_num_threads(threads)


def _run_here(job: Job) -> None:
    scorer = job.load(job.progress, job.device)
    ahead = ReadAhead(scorer.read)
    try:
        for unit in job.begin(scorer.facts):
            ahead.put(unit)
            if len(ahead) > AHEAD:
                scorer.score(*ahead.pop())
        while ahead:
            scorer.score(*ahead.pop())
    finally:
        ahead.close()


def _groups(job: Job) -> int:
    """How many workers this machine's GPUs are for."""
    return max(1, torch.cuda.device_count() // job.gpus) if job.device == "cuda" else 1


@dataclass
class Worker:
    """A worker process as the planning process sees it."""

    connection: "Connection[Message, Message]"
    name: str
    process: subprocess.Popen[bytes]
    device: str = ""
    loaded: bool = False
    units: list[Unit] = field(default_factory=list)  # it scores the first and reads the others
    rows: int = 0  # of the first, as far as the bar knows
    tokens: int = 0

    @classmethod
    def started(cls, number: int, device: str) -> "Worker":
        """A new process. It gets no key press of the terminal: who plans is interrupted alone."""
        ours, theirs = Pipe()
        # Nothing but our own search path: a torch.py in the current folder is none of it.
        path = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "eaft_probe.engines.worker", str(theirs.fileno()), device],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | path,
        )
        theirs.close()
        return cls(ours, f"worker {number}", process)

    def send(self, name: str, value: object) -> None:
        with suppress(OSError):  # it has died; the next look at its connection shows it
            self.connection.send((name, value))

    def end(self) -> str:
        """Ends the process, if it has not ended itself; how it ended, for people."""
        self.connection.close()
        with suppress(ProcessLookupError):
            self.process.kill()
        status = self.process.wait()
        return f"ended with status {status}" if status >= 0 else f"was killed by {_signal(-status)}"


def _signal(number: int) -> str:
    name = signal.Signals(number).name
    return f"{name}, as the system does when memory runs out" if name == "SIGKILL" else name


class WorkerPool:
    """The workers of one run."""

    def __init__(self, job: Job, count: int) -> None:
        self.job, self.count, self.started, self.unloaded = job, count, 0, 0
        self.workers: list[Worker] = []
        self.queue: UnitQueue | None = None  # once a model is loaded

    def run(self) -> None:
        try:
            for _ in range(self.count):
                self._start_worker()
            while not self._finished():
                readable = wait([w.connection for w in self.workers])
                for worker in [w for w in self.workers if w.connection in readable]:
                    self._receive(worker)
        finally:
            for worker in self.workers:
                worker.end()

    def _finished(self) -> bool:
        if not self.workers:
            raise ProbeError(
                "every worker ended while it loaded the model. Fewer --workers need less memory"
            )
        idle = not any(worker.units for worker in self.workers)
        return self.queue is not None and idle and self.queue.over()

    def _assign(self) -> None:
        """Gives units to idle workers; where there are enough for all, one more to read ahead."""
        assert self.queue is not None
        for held in range(AHEAD + 1):
            for worker in [w for w in self.workers if w.loaded and len(w.units) == held]:
                unit = self.queue.next_of_many(len(self.workers)) if held else self.queue.next()
                if unit:
                    worker.units.append(unit)
                    worker.send("unit", unit)

    def _start_worker(self) -> None:
        self.started += 1
        device = self._free_device()
        worker = Worker.started(self.started, device)
        worker.device = device
        self.workers.append(worker)
        worker.send("load", self.job.load)

    def _free_device(self) -> str:
        """The job's; of several GPUs, or groups of them, the one that fewest workers have."""
        if self.job.device != "cuda":
            return self.job.device or ""
        taken = [worker.device for worker in self.workers]
        return min((f"cuda:{n}" for n in range(_groups(self.job))), key=taken.count)

    def _receive(self, worker: Worker) -> None:
        try:
            name, value = worker.connection.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        if name == "failed":
            raise value
        getattr(self, f"_{name}")(worker, value)

    # --- what a worker sends ---

    def _ready(self, worker: Worker, facts: Facts) -> None:
        worker.loaded = True
        self.queue = self.queue or UnitQueue(self.job.begin(facts))
        self._assign()

    def _advance(self, worker: Worker, done: tuple[int, int]) -> None:
        worker.rows, worker.tokens = worker.rows + done[0], worker.tokens + done[1]
        self.job.progress.advance(*done)

    def _note(self, worker: Worker, text: str) -> None:
        self.job.progress.note(text)

    def _done(self, worker: Worker, _: None) -> None:
        worker.units.pop(0)
        worker.rows = worker.tokens = 0
        self._assign()

    def _replace(self, worker: Worker) -> None:
        """Its units go to other workers, and a new one takes its place."""
        self.workers.remove(worker)
        why, task = worker.end(), "it had no unit"
        if worker.units:
            assert self.queue is not None
            unit, *read = worker.units
            self.job.progress.advance(-worker.rows, -worker.tokens)
            self.queue.give_back(unit, why)
            self.queue.returned += read
            task = f"{described(unit)} are scored again"
        self.job.progress.note(f"{worker.name} {why}; {task}")
        self.unloaded += not worker.loaded
        if self.unloaded < DEATHS:
            self._start_worker()
        if self.queue is not None:
            self._assign()
