"""A worker process: it loads the model once, scores the units it is sent, and tells how it goes.

Messages are pickled (name, value) pairs over a connection to the process that plans.
    to a worker: load, unit          from it: ready, advance, note, done, failed
"""

import os
import pickle
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from eaft_probe.data.units import Unit
from eaft_probe.engines.ahead import AHEAD, ReadAhead
from eaft_probe.engines.unit_queue import Load, Scorer
from eaft_probe.errors import ProbeError, one_line


class Told:
    """A `Progress` that the planning process hears."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self.connection = connection

    def tell(self, name: str, value: Any = None) -> None:
        try:
            self.connection.send((name, value))
        except OSError:
            os._exit(1)  # nobody is there any more

    def start(self, what: str, rows: int) -> None: ...

    def advance(self, rows: int, tokens: int) -> None:
        self.tell("advance", (rows, tokens))

    def note(self, text: str) -> None:
        self.tell("note", text)


class Work:
    """What a worker has been sent."""

    scorer: Scorer
    ahead: ReadAhead

    def __init__(self, told: Told, device: str | None) -> None:
        self.told, self.device = told, device

    def load(self, load: Load) -> None:
        self.scorer = load(self.told, self.device)
        self.ahead = ReadAhead(self.scorer.read)
        self.told.tell("ready", self.scorer.facts)

    def unit(self, unit: Unit) -> None:
        self.ahead.put(unit)

    def has_more_than(self, units: int) -> bool:
        return len(self.ahead) > units

    def score(self) -> None:
        self.scorer.score(*self.ahead.pop())
        self.told.tell("done")


def serve(connection: "Connection[Any, Any]", device: str | None = None) -> None:
    """Works until the planning process ends this one, or is gone."""
    inbox: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    work = Work(Told(connection), device)
    while True:
        name, value = inbox.get()
        try:
            getattr(work, name)(value)
            while work.has_more_than(AHEAD if not inbox.empty() else 0):
                work.score()
        except Exception as error:
            work.told.tell("failed", _portable(error))


def _listen(connection: "Connection[Any, Any]", inbox: "SimpleQueue[tuple[str, Any]]") -> None:
    """Where the planning process is gone, this one goes at once, even in the middle of a unit: the
    unit's part takes its place whole or not at all."""
    with suppress(EOFError, OSError):
        while True:
            inbox.put(connection.recv())
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """An error as another process can read it; one of ours is a line, any other has its place."""
    if not isinstance(error, ProbeError | OSError):
        error.add_note("in a worker:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ProbeError(f"a worker failed: {type(error).__name__}: {one_line(error)}")
    return error


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), sys.argv[2] or None)
