"""One run at a time writes a scan's folder: which, whether it lives, and where it writes aside.

    DIR/running/owner.json   who it is; the file's time is its heartbeat
    DIR/running/<name>/      files on their way to their places

Making a folder and renaming one are single steps on every shared file system, so nothing here needs
file locks. A run that takes over from a dead one first moves `running/` away. The old run may only
have been paused; when it wakes, the folder that it would rename from is gone, and so it can no
longer change the scan, whatever it was about to do.
"""

import json
import os
import platform
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from eaft_probe.errors import BadInput, ProbeError, ScanError, one_line
from eaft_probe.progress import Progress

RUNNING, OWNER = "running", "owner.json"
HEARTBEAT = 5.0  # seconds between two
SILENT = 30.0  # seconds without one after which a run that cannot be asked counts as dead


@dataclass(frozen=True)
class Ownership:
    """A run's hold on a scan's folder."""

    folder: Path
    name: str = field(default_factory=lambda: secrets.token_hex(6))

    @property
    def scratch(self) -> Path:
        """The folder to write aside in. It is gone when another run has taken over."""
        return self.folder / RUNNING / self.name

    def require(self) -> None:
        """Raises `ScanError` where another run has taken over."""
        if not self.scratch.is_dir():
            raise ScanError(f"another run has taken over {self.folder}, this one was silent for "
                            f"too long; nothing is lost")  # fmt: skip

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raises `ScanError` where a write failed since another run has taken over, `ProbeError`
        where it failed otherwise."""
        try:
            yield
        except OSError as error:
            self.require()
            raise ProbeError(f"cannot write to {self.folder}: {error.strerror or one_line(error)}; "
                             f"what is finished stays, the same command goes on from "
                             f"there") from error  # fmt: skip

    def claim(self) -> None:
        """Makes `running/`. Raises `FileExistsError` where there is one."""
        (self.folder / RUNNING).mkdir(parents=True)
        self.scratch.mkdir()
        me = {"machine": machine(), "pid": os.getpid(), "started": _started(os.getpid())}
        (self.folder / RUNNING / OWNER).write_text(json.dumps(me))

    def beat(self, ended: threading.Event) -> None:
        while self.scratch.is_dir() and not ended.wait(HEARTBEAT):
            with suppress(OSError):  # a file server that is away for a moment
                os.utime(self.folder / RUNNING / OWNER)

    def release(self) -> None:
        """Removes `running/`, and the folder where nothing came into it."""
        if self.scratch.is_dir():
            _move_away(self.folder)
        with suppress(OSError):
            self.folder.rmdir()


@contextmanager
def owned(folder: Path, progress: Progress) -> Iterator[Ownership]:
    """The folder for this run alone; taken over where the run that had it is dead.

    A dead process of this machine is seen at once, another machine's after 30 s of silence.
    Raises `ScanError` where another run is at work there, `BadInput` where it cannot be written to.
    """
    mine = Ownership(folder)
    try:
        while not _claimed(mine):
            _require_dead(folder, progress)
            _move_away(folder)
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error.strerror or one_line(error)}") from error
    ended = threading.Event()
    threading.Thread(target=mine.beat, args=(ended,), daemon=True).start()
    try:
        yield mine
    finally:
        ended.set()
        mine.release()


def _claimed(mine: Ownership) -> bool:
    try:
        mine.claim()
    except FileExistsError:
        if (mine.folder / RUNNING).is_dir():
            return False
        raise
    return True


def _move_away(folder: Path) -> None:
    """In one step, as somebody may be writing there."""
    away = folder / f"{RUNNING}.{secrets.token_hex(6)}"
    with suppress(FileNotFoundError):  # another run was quicker
        os.rename(folder / RUNNING, away)
    for left in folder.glob(f"{RUNNING}.*"):
        shutil.rmtree(left, ignore_errors=True)


# --- whether a run lives ---


def _require_dead(folder: Path, progress: Progress) -> None:
    """Raises `ScanError` where the run that has the folder lives: its process is seen and its heart
    beats. A process that is only seen may be stopped for good, or hang."""
    owner = _owner(folder)
    here = owner.get("machine") == machine()
    if here and not _lives(owner):
        return
    where = "this machine" if here else str(owner.get("machine", "another machine")).split("/")[0]
    who = f"process {owner.get('pid', '?')} on {where}"
    progress.note(f"{folder} belongs to {who}; looking whether it is at work, up to {SILENT:.0f} s")
    if _beats(folder):
        raise ScanError(f"{who} is scanning into {folder}; wait for it, or choose another --out")


def _beats(folder: Path) -> bool:
    """Watched rather than compared with the clock: that of a file server may be another."""
    first, until = _pulse(folder), time.monotonic() + SILENT
    while time.monotonic() < until:
        time.sleep(min(0.2, HEARTBEAT / 5))
        if (now := _pulse(folder)) != first:
            return now is not None
    return False


def _pulse(folder: Path) -> int | None:
    """Opened, not only looked at: NFS keeps what it knows of a file for up to a minute."""
    try:
        with (folder / RUNNING / OWNER).open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _owner(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RUNNING / OWNER).read_text())
    except (OSError, ValueError):
        return {}  # being made, or its maker died at that
    return found if isinstance(found, dict) else {}


def _lives(owner: dict[str, Any]) -> bool:
    """Whether a process of this machine is there, and no other one under the same number."""
    try:
        process = psutil.Process(int(owner["pid"]))
        same = abs(process.create_time() - float(owner["started"])) < 2  # seconds
        return same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return False


def _started(pid: int) -> float:
    return float(psutil.Process(pid).create_time())


def machine() -> str:
    """This machine until its next boot; containers have process numbers of their own."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    known = boot.read_text().strip() if boot.exists() else f"{psutil.boot_time():.0f}"
    own = Path("/proc/self/ns/pid")
    return f"{platform.node()}/{known}/{own.stat().st_ino if own.exists() else 0}"
