"""Scans as other processes run them, and what of theirs is compared."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from forked import SECONDS, Forked, main

UNITS, ROWS_A_UNIT = 12, 4
SETTINGS: dict[str, Any] = {"rows_per_unit": ROWS_A_UNIT, "threads": 1}


def write_data(path: Path, rows: int = UNITS * ROWS_A_UNIT) -> Path:
    """Rows of unequal length, one of them malformed."""
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"say {n}"},
                    {"role": "assistant", "content": "the fox jumps " * (1 + n % 9)},
                ]
            }
        )
        for n in range(rows - 1)
    ]
    path.write_text("\n".join([*lines, "{broken"]))
    return path


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("*/part-*.parquet"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def left_over(folder: Path) -> list[str]:
    """What a run leaves only where it dies."""
    return [str(p) for p in folder.rglob("*") if p.name.startswith((".", "running"))]


def command(data: Path, out: Path, model: str, *more: str) -> list[str]:
    """A scan as SETTINGS have it, on the command line."""
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    return ["scan", str(data), "--out", str(out), "--model", model, *settings, *more]


def started(arguments: list[str]) -> Forked:
    return Forked(main, arguments)


def until(holds: Callable[[], Any], seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def begun(process: Forked, folder: Path, parts: int = 1) -> None:
    """Waits until a scan has so many parts, and stops where it has ended before."""

    def stands() -> bool:
        assert process.poll() is None, process.communicate()
        return len(list(folder.glob("examples/part-*"))) >= parts

    until(stands)


@dataclass
class Bar:
    """A `Progress` that counts, and does something with each step."""

    then: Callable[["Bar"], None] = lambda bar: None
    rows: int = 0
    tokens: int = 0
    starts: int = 0
    notes: list[str] = field(default_factory=list)

    def start(self, what: str, rows: int) -> None:
        self.starts += 1

    def advance(self, rows: int, tokens: int) -> None:
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens
        self.then(self)

    def note(self, text: str) -> None:
        self.notes.append(text)


def workers(of: int | None = None) -> list[psutil.Process]:
    """The worker processes of a process, this one by default."""
    children = psutil.Process(of or os.getpid()).children(recursive=True)
    return [c for c in children if _is_worker(c)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and "eaft_probe.engines.worker" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def kill(process: psutil.Process, number: int = signal.SIGKILL) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
