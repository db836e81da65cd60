"""The processes of a launcher share the units of a scan."""

import os
from functools import partial
from pathlib import Path

import psutil
import pytest
from forked import Forked, main, ran, torchrun
from running import SETTINGS, begun, command, hashes, left_over

from eaft_probe import Scan, scan
from eaft_probe.errors import BadInput


def test_ranks_take_units(data: Path, model_folder: str, undisturbed: Path, tmp_path: Path) -> None:
    status, out, errors = ran(torchrun, main, command(data, tmp_path / "s", model_folder))
    assert status == 0, errors
    assert hashes(tmp_path / "s") == hashes(undisturbed)
    assert Scan.open(tmp_path / "s").manifest["counts"]["examples"] == 47
    assert out.count("trained tokens (") == 1
    assert errors.count("loading ") == 1
    assert not left_over(tmp_path / "s")


def rank_1_killed(given: list[str], out: Path, restarts: int) -> tuple[Forked, str, str]:
    """The launcher, and what was said, when a scan has ended of which rank 1 was killed."""
    process = Forked(partial(torchrun, restarts=restarts), main, given)
    begun(process, out)
    ranks = psutil.Process(process.pid).children()
    ranks[-1].kill()
    said = process.communicate()
    psutil.wait_procs(ranks, timeout=10)
    return process, *said


def test_a_killed_rank_means_a_rerun(
    data: Path, model_folder: str, undisturbed: Path, tmp_path: Path
) -> None:
    rank_1_killed(command(data, tmp_path / "s", model_folder), tmp_path / "s", restarts=0)
    if not (tmp_path / "s/manifest.json").exists():  # rank 0 may have been quicker than its end
        scan(data, tmp_path / "s", model=model_folder, **SETTINGS)
    assert hashes(tmp_path / "s") == hashes(undisturbed)
    assert not left_over(tmp_path / "s")


def test_a_launcher_may_start_them_again(
    data: Path, model_folder: str, undisturbed: Path, tmp_path: Path
) -> None:
    """The new ranks meet, though the launcher's store has seen others, and go on."""
    given = command(data, tmp_path / "s", model_folder)
    process, out, errors = rank_1_killed(given, tmp_path / "s", restarts=1)
    assert process.returncode == 0, errors
    assert out.count("trained tokens (") == 1
    assert hashes(tmp_path / "s") == hashes(undisturbed)
    assert not left_over(tmp_path / "s")


def test_bad_input_ends_all_ranks(data: Path, model_folder: str, tmp_path: Path) -> None:
    given = command(data, tmp_path / "s", model_folder, "--keep", "nothing")
    status, _, errors = ran(torchrun, main, given)
    assert status != 0
    assert "eaft-probe: --keep nothing: no such column" in errors
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("more", [(), ("--tp",)], ids=str)
def test_an_estimate_is_said_once(
    more: tuple[str, ...], data: Path, model_folder: str, tmp_path: Path
) -> None:
    given = command(data, tmp_path / "s", model_folder, "--dry-run", "--tokens-per-second=9", *more)
    status, out, errors = ran(torchrun, main, given)
    assert status == 0, errors
    assert out.count("\nscored tokens ") == errors.count("counting the rows of") == 1
    assert not (tmp_path / "s").exists()


def test_other_engines_start_their_own_workers(
    data: Path, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="leave out the launcher"):
        scan(data, tmp_path / "s", model=model_folder, engine="ray")
