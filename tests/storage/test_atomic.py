"""Files written aside: whole or not at all, and nothing is left of a writer that was killed."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eaft_probe.storage import atomic
from eaft_probe.storage.atomic import written_aside

KILLED = """
import os, sys
from pathlib import Path
from eaft_probe.storage.atomic import written_aside
with written_aside(Path(sys.argv[1])) as aside:
    aside.write_text("half")
    os._exit(9)
"""


@pytest.fixture(autouse=True)
def sweeps_again() -> None:
    atomic._sweep.cache_clear()


def write(path: Path, text: str) -> None:
    with written_aside(path) as aside:
        aside.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "a", "old")

    def fail() -> None:
        with written_aside(tmp_path / "a") as aside:
            aside.write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "a"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == 9
    (left,) = names(tmp_path)
    assert left.endswith(".part")
    write(path, "whole")
    assert names(tmp_path) == ["a"]


def test_what_somebody_is_writing_stays(tmp_path: Path) -> None:
    with written_aside(tmp_path / "a") as aside:
        aside.write_text("first")
        atomic._sweep.cache_clear()
        write(tmp_path / "b", "second")
    assert names(tmp_path) == ["a", "b"]
    assert (tmp_path / "a").read_text() == "first"


def test_a_file_swept_before_its_writer_locks_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, locks = fcntl.flock, list[int]()

    def late(file: int, operation: int) -> None:
        if not locks:
            locks.append(file)
            monkeypatch.setattr(fcntl, "flock", lock)
            atomic._sweep.cache_clear()
            atomic._sweep(tmp_path)
            assert not names(tmp_path)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    write(tmp_path / "a", "whole")
    assert locks
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "whole"


def test_files_of_other_programs_stay(tmp_path: Path) -> None:
    """Browsers name downloads so; and nothing here is waited for or followed."""
    others = [".film.mp4.part", ".x.1234567.part", "y.12345678.part"]
    for name in others:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    os.mkfifo(tmp_path / ".pipe.12345678.part")
    (tmp_path / ".link.12345678.part").symlink_to(tmp_path / others[0])
    before = names(tmp_path)
    write(tmp_path / "a", "whole")
    assert names(tmp_path) == sorted([*before, "a"])


def test_without_locks_the_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    for name, time in ((".old.12345678.part", 1), (".new.12345678.part", None)):
        (tmp_path / name).touch()
        if time:
            os.utime(tmp_path / name, (time, time))
    write(tmp_path / "a", "whole")
    assert names(tmp_path) == [".new.12345678.part", "a"]
