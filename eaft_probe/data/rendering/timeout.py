"""A bound on how long somebody else's program, a chat template, may run in this process."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

POLL = 0.25  # seconds between two looks of the watching thread
AGAIN = 1.0  # seconds after which it is raised once more: a callback may have swallowed it


class TookTooLong(Exception):
    """Raised in the thread that ran on, between two of its steps."""

    def __str__(self) -> str:
        return "it ran too long"


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises `TookTooLong` where the body takes longer; a single step in C is waited for.

    One thread watches all others: a timer for each rendering cost 0.1 ms, and signals reach the
    main thread alone.
    """
    me = threading.get_ident()
    _watch()
    _running[me] = time.monotonic() + seconds
    try:
        yield
    finally:
        try:
            _forget(me)
        except TookTooLong:  # it was on its way when the body was done
            _forget(me)
            raise


def _forget(thread: int) -> None:
    """From here on nothing is raised in it any more."""
    with _lock:
        _running.pop(thread, None)


_running: dict[int, float] = {}  # thread → when its time is up
_lock = threading.Lock()
_watcher: threading.Thread | None = None


def _watch() -> None:
    """Starts the watching thread, once in a process: a forked one has none."""
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        _watcher = threading.Thread(target=_look, name="template timeout", daemon=True)
        _watcher.start()


def _look() -> None:
    while True:
        time.sleep(POLL)
        with _lock:
            late = [t for t, until in list(_running.items()) if until < time.monotonic()]
            for thread in late:
                _running[thread] = time.monotonic() + AGAIN
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(TookTooLong)
                )
