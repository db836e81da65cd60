"""Two runs and one folder: one of them scans, and nobody has to clean up."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from running import SETTINGS, Bar, begun, command, hashes, left_over, started

from eaft_probe import scan
from eaft_probe.errors import ScanError
from eaft_probe.progress import Silent
from eaft_probe.verbs import ownership
from eaft_probe.verbs.ownership import owned


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "HEARTBEAT", 0.05)
    monkeypatch.setattr(ownership, "SILENT", 0.6)


def abandoned(folder: Path, **owner: object) -> None:
    """What a run leaves that was killed."""
    (folder / "running/abc").mkdir(parents=True)
    (folder / "running/abc/.part-00000.parquet.1.part").write_bytes(b"half")
    (folder / "running/owner.json").write_text(json.dumps(owner))


def test_a_second_run_is_refused_in_one_line(
    data: Path, model_folder: str, undisturbed: Path, tmp_path: Path
) -> None:
    refused = []

    def then(bar: Bar) -> None:
        if not refused:
            with pytest.raises(ScanError, match=f"process {os.getpid()} on this machine is scann"):
                scan(data, tmp_path / "s", model=model_folder, **SETTINGS)
            refused.append(True)

    scan(data, tmp_path / "s", model=model_folder, progress=Bar(then), **SETTINGS)
    assert refused
    assert hashes(tmp_path / "s") == hashes(undisturbed)
    assert not left_over(tmp_path / "s")


def test_a_dead_process_of_this_machine_is_seen_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "SILENT", 60.0)
    here = {"machine": ownership.machine(), "started": 1.0}
    for pid in (2**22 + 1, os.getpid()):  # the second one is another process by now
        abandoned(tmp_path / str(pid), pid=pid, **here)
        began = time.monotonic()
        with owned(tmp_path / str(pid), Silent()) as mine:
            assert time.monotonic() - began < 5
            assert os.listdir(tmp_path / str(pid) / "running") != []
            assert mine.scratch.is_dir()
            assert not (tmp_path / str(pid) / "running/abc").exists()
        assert not (tmp_path / str(pid)).exists()


@pytest.mark.parametrize("owner", [{"machine": "elsewhere/1/2", "pid": 3}, {}])
def test_a_silent_machine_is_given_up(tmp_path: Path, owner: dict[str, object]) -> None:
    abandoned(tmp_path / "s", **owner)
    bar = Bar()
    with owned(tmp_path / "s", bar):
        assert len(bar.notes) == 1
    assert "looking whether it is at work" in bar.notes[0]


def test_a_folder_that_is_being_claimed_belongs_to_somebody(tmp_path: Path) -> None:
    """Between the folder and its owner's name, which a watcher then sees come."""
    import threading

    (tmp_path / "s/running").mkdir(parents=True)
    writes = threading.Timer(0.2, (tmp_path / "s/running/owner.json").write_text, ["{}"])
    writes.start()
    with pytest.raises(ScanError, match="is scanning into"), owned(tmp_path / "s", Silent()):
        pass
    writes.join()
    assert (tmp_path / "s/running/owner.json").exists()


def test_a_run_that_lost_its_folder_can_change_nothing(tmp_path: Path) -> None:
    with owned(tmp_path / "s", Silent()) as paused:
        ownership._move_away(tmp_path / "s")  # as another run does
        with owned(tmp_path / "s", Silent()) as other:
            (tmp_path / "s/tokens").mkdir()
            with pytest.raises(ScanError, match="taken over"):
                paused.require()
            with pytest.raises(FileNotFoundError):
                os.replace(tmp_path / "s/tokens", paused.scratch / "old-tokens")
            other.require()
    assert (tmp_path / "s/tokens").is_dir()


def test_a_paused_run_that_wakes_leaves_the_scan_alone(
    data: Path, model_folder: str, undisturbed: Path, tmp_path: Path
) -> None:
    process = started(command(data, tmp_path / "s", model_folder))
    begun(process, tmp_path / "s")
    process.send_signal(signal.SIGSTOP)
    assert not (tmp_path / "s/manifest.json").exists()
    scan(data, tmp_path / "s", model=model_folder, **SETTINGS)
    made = hashes(tmp_path / "s"), (tmp_path / "s/manifest.json").read_bytes()
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "another run has taken over" in errors.splitlines()[-1]
    assert made == (hashes(tmp_path / "s"), (tmp_path / "s/manifest.json").read_bytes())
    assert made[0] == hashes(undisturbed)
    assert not left_over(tmp_path / "s")
