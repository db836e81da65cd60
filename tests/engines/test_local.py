"""Worker processes: the same bytes, whoever dies."""

import shutil
import signal
from pathlib import Path

import psutil
import pytest
import torch
from running import SETTINGS, Bar, begun, command, hashes, kill, left_over, ran, started
from running import workers as worker_processes

from eaft_probe import Scan, scan
from eaft_probe.data.sources import Record
from eaft_probe.data.units import Unit
from eaft_probe.engines.job import Waiting
from eaft_probe.errors import BadInput, ProbeError


def test_workers_give_the_bytes_of_one_process(
    data: Path, model_folder: str, undisturbed: Path, tmp_path: Path
) -> None:
    bar, threads = Bar(), torch.get_num_threads()
    done = scan(data, tmp_path / "s", model=model_folder, workers=2, progress=bar, **SETTINGS)
    assert hashes(tmp_path / "s") == hashes(undisturbed)
    counts = done.manifest["counts"]
    assert (bar.starts, bar.rows, bar.tokens) == (1, counts["rows"], counts["trained_tokens"])
    assert {p: done.manifest[p] for p in ("parts", "counts", "columns", "model", "data")} == {
        p: Scan.open(undisturbed).manifest[p]
        for p in ("parts", "counts", "columns", "model", "data")
    }
    assert not left_over(tmp_path / "s")
    assert torch.get_num_threads() == threads
    assert not worker_processes()


def test_a_killed_workers_unit_goes_to_another(
    data: Path, model_folder: str, undisturbed: Path, tmp_path: Path
) -> None:
    killed = []

    def then(bar: Bar) -> None:
        if len(killed) < 2 and bar.rows > 10 * len(killed):
            killed.append(worker_processes()[0])
            kill(killed[-1])

    bar = Bar(then)
    done = scan(data, tmp_path / "s", model=model_folder, workers=2, progress=bar, **SETTINGS)
    assert len(killed) == 2
    assert sum("SIGKILL" in note for note in bar.notes) == 2
    assert hashes(tmp_path / "s") == hashes(undisturbed)
    counts = done.manifest["counts"]
    assert (bar.rows, bar.tokens) == (counts["rows"], counts["trained_tokens"])


def test_a_unit_that_ends_its_workers_is_named() -> None:
    units = [Unit(n, (Record(2 * n, "d.jsonl", 1, b"{}"), Record(2 * n + 1, "d.jsonl", 2, b"{}")))
             for n in range(3)]  # fmt: skip
    waiting = Waiting(iter(units))
    first, second = waiting.next(), waiting.next()
    assert (first, second) == (units[0], units[1])
    waiting.give_back(units[0], "was killed by SIGKILL")
    waiting.give_back(units[1], "was killed by SIGKILL")
    assert [waiting.next() for _ in range(2)] == units[:2]
    waiting.give_back(units[1], "was killed by SIGKILL")
    with pytest.raises(
        ProbeError, match=r"unit 1, rows 2 to 3 of d\.jsonl, ended 3 workers .*KILL"
    ):
        waiting.give_back(units[1], "was killed by SIGKILL")


def test_a_unit_waits_though_nobody_is_there_to_take_it() -> None:
    waiting = Waiting(iter([Unit(0, ())]))
    assert not waiting.over()
    unit = waiting.next()
    assert unit is not None
    assert waiting.over()
    waiting.give_back(unit, "left")
    assert not waiting.over()


def test_workers_end_with_their_parent_and_a_rerun_finishes(
    data: Path, model_folder: str, undisturbed: Path, tmp_path: Path
) -> None:
    process = started(command(data, tmp_path / "s", model_folder, "--workers", "2"))
    begun(process, tmp_path / "s")
    workers = worker_processes(process.pid)
    assert len(workers) == 2
    process.kill()
    process.communicate()
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert (len(gone), alive) == (2, [])
    assert not (tmp_path / "s/manifest.json").exists()
    scan(data, tmp_path / "s", model=model_folder, **SETTINGS)
    assert hashes(tmp_path / "s") == hashes(undisturbed)
    assert not left_over(tmp_path / "s")


def test_an_interruption_is_one_line(data: Path, model_folder: str, tmp_path: Path) -> None:
    process = started(command(data, tmp_path / "s", model_folder, "--workers", "2"))
    begun(process, tmp_path / "s")
    workers = worker_processes(process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted; the same command goes on" in errors
    assert not any(w.is_running() and w.status() != "zombie" for w in workers)


def test_what_a_worker_finds_wrong_is_said(data: Path, model_folder: str, tmp_path: Path) -> None:
    """While it loads, when the folder is not touched yet; while it scores, see `test_ray.py`."""
    with pytest.raises(BadInput, match="--max-length 9999"):
        scan(data, tmp_path / "t", model=model_folder, workers=2, max_length=9999, **SETTINGS)
    assert not (tmp_path / "t").exists()
    assert not worker_processes()


def test_engine_settings_are_checked(data: Path, model_folder: str, tmp_path: Path) -> None:
    for settings, message in [
        ({"workers": 0}, "--workers is a whole number from 1, found 0"),
        ({"workers": -3}, "--workers is a whole number from 1"),
        ({"threads": 0}, "--threads"),
        ({"engine": "rya"}, "did you mean 'ray'"),
        ({"address": "auto"}, "--engine ray"),
        ({"tp": True, "workers": 2}, "--tp"),
    ]:
        with pytest.raises(BadInput, match=message):
            scan(data, tmp_path / "s", **{"model": model_folder, **settings})
    status, _, errors = ran(command(data, tmp_path / "s", model_folder, "--workers", "0"))
    assert (status, len(errors.splitlines())) == (2, 1)


def test_another_process_halves_the_batches_that_one_had_to(
    data: Path, model_folder: str, tmp_path: Path
) -> None:
    made = []
    for out, workers in ((tmp_path / "one", 1), (tmp_path / "two", 2)):
        scan(data, out, model=model_folder, **SETTINGS)
        for lost in ("manifest.json", "tokens/part-00001.parquet"):
            (out / lost).unlink()
        (out / "halved").mkdir()
        (out / "halved/00001.txt").write_text("1/0/\n")
        done = scan(data, out, model=model_folder, workers=workers, **SETTINGS)
        assert done.manifest["counts"]["halved"] == 1
        made.append(hashes(out))
    assert made[0] == made[1]


def test_a_scan_goes_on_with_the_threads_that_it_began_with(
    data: Path, model_folder: str, undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "s")
    for lost in ("manifest.json", "examples/part-00003.parquet"):
        (tmp_path / "s" / lost).unlink()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        scan(data, tmp_path / "s", model=model_folder, rows_per_unit=4)
        with pytest.raises(BadInput, match="threads 1 there, 2 now"):
            scan(data, tmp_path / "s", model=model_folder, rows_per_unit=4, threads=2)
    finally:
        torch.set_num_threads(before)
    assert hashes(tmp_path / "s") == hashes(undisturbed)
