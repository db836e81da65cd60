"""Worker processes: the same bytes, whoever dies."""

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from running import SETTINGS, Bar, begun, command, hashes, kill, left_over, started
from running import workers as worker_processes

from eaft_probe import Scan, scan
from eaft_probe.cli import _run
from eaft_probe.data.record import Record
from eaft_probe.data.units import Unit
from eaft_probe.engines.unit_queue import DEATHS, UnitQueue
from eaft_probe.errors import BadInput, ProbeError
from eaft_probe.scans.part_writer import REPORT_KEY


def test_a_killed_workers_unit_goes_to_another(
    data: Path, model_folder: str, undisturbed: Path, tmp_path: Path
) -> None:
    """The bytes, the counts and the bar are those of one process that nothing disturbed."""
    killed: list[psutil.Process] = []

    def then(bar: Bar) -> None:
        if not killed:
            killed.append(worker_processes()[0])
            kill(killed[-1])

    bar, threads = Bar(then), torch.get_num_threads()
    done = scan(data, tmp_path / "s", model=model_folder, workers=2, progress=bar, **SETTINGS)
    assert sum("SIGKILL" in note for note in bar.notes) == 1
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


DEADLY = """
import os
import signal

from transformers import LlamaForCausalLM


def end(module, arguments, given):
    if (given["input_ids"] == {token}).any():
        os.kill(os.getpid(), signal.SIGKILL)


class Deadly(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_pre_hook(end, with_kwargs=True)
"""


@pytest.fixture
def deadly(model_folder: str, tmp_path: Path) -> str:
    """A model with code of its own, which ends the process that shows it a tilde."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "deadly"))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "deadly.Deadly"}
    (folder / "config.json").write_text(json.dumps(config))
    (token,) = tiny.tokenizer().encode("~", add_special_tokens=False)
    (folder / "deadly.py").write_text(DEADLY.format(token=token))
    return str(folder)


@pytest.mark.usefixtures("forked_workers")
def test_a_unit_that_ends_every_worker_stops_the_scan(
    data: Path, model_folder: str, deadly: str, tmp_path: Path
) -> None:
    """The other units' parts stay, their tokens byte for byte those of a scan that nothing ended;
    the examples say which plan they are of, and so which model."""
    lines = data.read_text().splitlines()
    poisoned = tmp_path / "poisoned.jsonl"
    poisoned.write_text("\n".join([*lines[:21], lines[21].replace("jumps", "~"), *lines[22:]]))
    bar = Bar()
    said = f"unit 5, rows 20 to 23 of {poisoned.name}, ended {DEATHS} workers"
    with pytest.raises(ProbeError, match=re.escape(said)):
        scan(
            poisoned,
            tmp_path / "s",
            model=deadly,
            workers=2,
            trust_remote_code=True,
            progress=bar,
            **SETTINGS,
        )
    assert sum("are scored again" in note for note in bar.notes) == DEATHS - 1
    scan(poisoned, tmp_path / "whole", model=model_folder, **SETTINGS)
    kept, whole = (
        {n: h for n, h in hashes(tmp_path / s).items() if n.startswith("tokens/")}
        for s in ("s", "whole")
    )
    assert len(kept) >= 5
    assert kept.items() < whole.items()
    assert not any("00005" in name for name in kept)
    assert not left_over(tmp_path / "s")


def test_a_unit_that_ends_its_workers_is_named() -> None:
    units = [
        Unit(n, (Record(2 * n, "d.jsonl", 1, b"{}"), Record(2 * n + 1, "d.jsonl", 2, b"{}")))
        for n in range(3)
    ]
    waiting = UnitQueue(iter(units))
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
    waiting = UnitQueue(iter([Unit(0, ())]))
    assert not waiting.over()
    unit = waiting.next()
    assert unit is not None
    assert waiting.over()
    waiting.give_back(unit, "left")
    assert not waiting.over()


@pytest.mark.parametrize("count", [0, 2])
def test_workers_end_with_their_parent_and_a_rerun_finishes(
    count: int, data: Path, model_folder: str, undisturbed: Path, tmp_path: Path
) -> None:
    given = [f"--workers={count}"] if count else []
    process = started(command(data, tmp_path / "s", model_folder, *given))
    begun(process, tmp_path / "s")
    workers = worker_processes(process.pid)
    assert len(workers) == count
    process.kill()
    process.communicate()
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert (len(gone), alive) == (count, [])
    assert not (tmp_path / "s/manifest.json").exists()
    scan(data, tmp_path / "s", model=model_folder, **SETTINGS)
    assert hashes(tmp_path / "s") == hashes(undisturbed)
    assert not left_over(tmp_path / "s")


@pytest.mark.parametrize("given", [(), ("--workers=2",)], ids=str)
def test_an_interruption_is_one_line(
    given: tuple[str, ...], data: Path, model_folder: str, tmp_path: Path
) -> None:
    process = started(command(data, tmp_path / "s", model_folder, *given))
    begun(process, tmp_path / "s")
    workers = worker_processes(process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted; the same command continues" in errors
    assert not any(w.is_running() and w.status() != "zombie" for w in workers)


@pytest.mark.usefixtures("forked_workers")
def test_what_a_worker_finds_wrong_is_said(data: Path, model_folder: str, tmp_path: Path) -> None:
    """While it loads, when the folder is not touched yet; while it scores, see `test_ray.py`."""
    with pytest.raises(BadInput, match="--max-length 9999"):
        scan(data, tmp_path / "t", model=model_folder, workers=2, max_length=9999, **SETTINGS)
    assert not (tmp_path / "t").exists()
    assert not worker_processes()


def test_engine_settings_are_checked(
    data: Path, model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for settings, message in [
        ({"workers": 0}, "--workers must be at least 1 and at most 1,024, found 0"),
        ({"workers": -3}, "--workers must be at least 1"),
        ({"threads": 0}, "--threads"),
        ({"engine": "rya"}, "did you mean 'ray'"),
        ({"address": "auto"}, "--engine ray"),
        ({"tp": True, "workers": 2}, "--tp"),
    ]:
        with pytest.raises(BadInput, match=message):
            scan(data, tmp_path / "s", **{"model": model_folder, **settings})
    assert _run(command(data, tmp_path / "s", model_folder, "--workers", "0")) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.usefixtures("forked_workers")
def test_another_process_halves_the_batches_that_one_had_to(
    data: Path, model_folder: str, tmp_path: Path
) -> None:
    made = []
    for out, workers in ((tmp_path / "one", 1), (tmp_path / "two", 2)):
        scan(data, out, model=model_folder, **SETTINGS)
        for lost in ("manifest.json", "tokens/part-00001.parquet"):
            (out / lost).unlink()
        examples = out / "examples/part-00001.parquet"
        table = pq.read_table(examples, partitioning=None)
        said = json.loads(table.schema.metadata[REPORT_KEY]) | {"halved": ["1/0/"]}
        pq.write_table(table.replace_schema_metadata({REPORT_KEY: json.dumps(said)}), examples)
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


@pytest.fixture
def disk(undisturbed: Path, tmp_path: Path) -> Iterator[Path]:
    """A file system with room for half of a scan, as far as this process may mount one."""
    place, page = tmp_path / "disk", 4096
    place.mkdir()
    pages = sum(-(-f.stat().st_size // page) for f in undisturbed.rglob("part-*"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={pages * page // 2}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.usefixtures("forked_workers")
def test_a_full_disk_costs_no_byte(
    data: Path, model_folder: str, undisturbed: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = command(data, disk / "s", model_folder, "--workers", "2")
    assert _run(given) == 1
    said = "No space left on device; finished parts are kept, run the same command"
    assert said in capsys.readouterr().err
    kept, whole = hashes(disk / "s"), hashes(undisturbed)
    assert kept
    assert kept.items() < whole.items()
    subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
    assert _run(given) == 0
    assert hashes(disk / "s") == whole
    assert not left_over(disk / "s")
