"""Two runs and one folder: both may write, nothing is mixed, and nobody has to clean up."""

import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from running import SETTINGS, Bar, begun, command, hashes, left_over, started

from eaft_probe import scan
from eaft_probe.errors import ScanError


def test_a_second_run_with_the_same_settings_does_no_harm(
    data: Path, model_folder: str, undisturbed: Path, tmp_path: Path
) -> None:
    seconds = []

    def then(bar: Bar) -> None:
        if not seconds and bar.rows >= 8:
            seconds.append(
                scan(data, tmp_path / "s", model=model_folder, progress=note, **SETTINGS)
            )

    note = Bar()
    first = scan(data, tmp_path / "s", model=model_folder, progress=Bar(then), **SETTINGS)
    assert first.manifest == seconds[0].manifest
    assert "another run is at work on" in note.notes[0]
    assert hashes(tmp_path / "s") == hashes(undisturbed)
    assert not left_over(tmp_path / "s")


def test_a_run_whose_scan_was_replaced_writes_nothing_more(
    data: Path, model_folder: str, tmp_path: Path
) -> None:
    other, made = SETTINGS | {"rows_per_unit": 6}, []

    def then(bar: Bar) -> None:
        if not made and bar.rows >= 8:
            scan(data, tmp_path / "s", model=model_folder, overwrite=True, **other)
            made.append(hashes(tmp_path / "s"))

    with pytest.raises(ScanError, match="holds a scan with other settings"):
        scan(data, tmp_path / "s", model=model_folder, progress=Bar(then), **SETTINGS)
    assert made == [hashes(tmp_path / "s")]


def test_a_part_of_another_plan_is_scored_again(
    data: Path, model_folder: str, undisturbed: Path, tmp_path: Path
) -> None:
    """As a run leaves it that was replaced while it put the part."""
    scan(data, tmp_path / "other", model=model_folder, **SETTINGS | {"dtype": "bfloat16"})
    shutil.copytree(undisturbed, tmp_path / "s")
    (tmp_path / "s/manifest.json").unlink()
    for kind in ("tokens", "examples"):
        name = f"{kind}/part-00003.parquet"
        shutil.copy(tmp_path / "other" / name, tmp_path / "s" / name)
    assert hashes(tmp_path / "s") != hashes(undisturbed)
    scan(data, tmp_path / "s", model=model_folder, **SETTINGS)
    assert hashes(tmp_path / "s") == hashes(undisturbed)


def test_a_part_that_two_runs_made_is_scored_again(
    data: Path, model_folder: str, undisturbed: Path, tmp_path: Path
) -> None:
    """Tokens of one kind of hardware under examples of another, with as many rows."""
    shutil.copytree(undisturbed, tmp_path / "s")
    (tmp_path / "s/manifest.json").unlink()
    part = tmp_path / "s/tokens/part-00003.parquet"

    table = pq.read_table(part, partitioning=None)
    pq.write_table(table, part)  # other bytes, the same rows
    with pytest.raises(
        ScanError, match=r"written by another run at the same time.*same command again"
    ):
        scan(data, tmp_path / "s", model=model_folder, **SETTINGS)
    scan(data, tmp_path / "s", model=model_folder, **SETTINGS)
    assert hashes(tmp_path / "s") == hashes(undisturbed)


def test_a_paused_run_that_wakes_finds_the_scan_finished(
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
    assert process.returncode == 0, errors
    assert made == (hashes(tmp_path / "s"), (tmp_path / "s/manifest.json").read_bytes())
    assert made[0] == hashes(undisturbed)
    assert not left_over(tmp_path / "s")
