"""A worker process: it loads the model once, scores the units it is sent, and reports its progress.

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
from eaft_probe.engines.unit_queue import Load, Message, Scorer
from eaft_probe.errors import ProbeError, one_line


class ConnectionProgress:
    """A `Progress` that is sent to the process that plans."""

    def __init__(self, connection: "Connection[Message, Message]") -> None:
        self.connection = connection

    def send(self, name: str, value: object = None) -> None:
        try:
            self.connection.send((name, value))
        except OSError:
            os._exit(1)  # nobody listens any more

    def start(self, what: str, rows: int) -> None: ...

    def advance(self, rows: int, tokens: int) -> None:
        self.send("advance", (rows, tokens))

    def note(self, text: str) -> None:
        self.send("note", text)


class Work:
    """What a worker does, by the names of the messages."""

    scorer: Scorer
    ahead: ReadAhead[Any]

    def __init__(self, progress: ConnectionProgress, device: str | None) -> None:
        self.progress, self.device = progress, device

    def load(self, load: Load) -> None:
        self.scorer = load(self.progress, self.device)
        self.ahead = ReadAhead(self.scorer.read)
        self.progress.send("ready", self.scorer.facts)

    def unit(self, unit: Unit) -> None:
        self.ahead.put(unit)

    def has_more_than(self, units: int) -> bool:
        return len(self.ahead) > units

    def score(self) -> None:
        self.scorer.score(*self.ahead.pop())
        self.progress.send("done")


def serve(connection: "Connection[Message, Message]", device: str | None = None) -> None:
    """Works until the planning process ends this one, or is gone."""
    inbox: SimpleQueue[Message] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    work = Work(ConnectionProgress(connection), device)
    while True:
        name, value = inbox.get()
        try:
            getattr(work, name)(value)
            while work.has_more_than(AHEAD if not inbox.empty() else 0):
                work.score()
        except Exception as error:
            work.progress.send("failed", _portable(error))


def _listen(connection: "Connection[Message, Message]", inbox: "SimpleQueue[Message]") -> None:
    """Where the planning process is gone, this one goes at once, even in the middle of a unit: a
    unit's part is created whole or not at all."""
    with suppress(EOFError, OSError):
        while True:
            inbox.put(connection.recv())
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """An error as another process can read it; one that is none of ours brings its traceback."""
    if not isinstance(error, ProbeError | OSError):
        error.add_note("in a worker:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ProbeError(f"a worker failed: {type(error).__name__}: {one_line(error)}")
    return error


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), sys.argv[2] or None)
