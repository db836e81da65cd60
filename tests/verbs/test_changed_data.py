"""Data that change under a run end it, however they change; nothing made of both versions stays."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from eaft_probe import scan
from eaft_probe.data.files.options import FileOptions
from eaft_probe.data.files.readers import DataFile
from eaft_probe.data.record import Record
from eaft_probe.data.sources import Files
from eaft_probe.errors import ProbeError, ScanError
from eaft_probe.model.loading import load_model
from eaft_probe.settings import ScanSettings
from eaft_probe.verbs.rollout.rollout import rollout
from eaft_probe.verbs.train.dataset import Rows

UNITS, ROWS_A_UNIT = 12, 3
Change = Callable[[Path], None]


def lines(word: str, rows: int = UNITS * ROWS_A_UNIT) -> str:
    return "".join(
        json.dumps({"prompt": f"say {i}", "completion": f"the {word} {i}"}) + "\n"
        for i in range(rows)
    )


def grow(path: Path) -> None:
    with path.open("a") as file:
        file.write(lines("dog", 2))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def rewrite(path: Path) -> None:
    """As many bytes."""
    path.write_text(lines("dog"))


def replace(path: Path) -> None:
    """By a file of the same size and time."""
    before = path.stat()
    other = path.with_name("other")
    other.write_text(lines("dog"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def rewrite_unseen(path: Path) -> None:
    """In place, with the size and the time that it had: within a tick of the clock."""
    before = path.stat()
    rewrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


SEEN: tuple[Change, ...] = (grow, cut, rewrite, replace)
CHANGES: tuple[Change, ...] = (*SEEN, rewrite_unseen)


@dataclass
class Changing:
    """A `Progress` of a run during which the data change once."""

    path: Path
    change: Change | None
    at: int = ROWS_A_UNIT  # rows that were done by then
    done: int = 0

    def start(self, what: str, rows: int) -> None: ...

    def note(self, text: str) -> None: ...

    def advance(self, rows: int, tokens: int) -> None:
        self.done += rows
        if self.change and self.done >= self.at:
            self.change(self.path)
            self.change = None


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines("fox"))
    return path


def parts(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("*/part-*")}


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("change", SEEN)
def test_a_scan_ends_and_goes_on_with_the_old_data(
    tmp_path: Path, model_folder: str, data: Path, change: Change, workers: int
) -> None:
    settings = {"model": model_folder, "rows_per_unit": ROWS_A_UNIT, "threads": 1}
    whole = scan(data, tmp_path / "whole", **settings)
    out = tmp_path / "scan"
    told = Changing(data, change, (2 * workers - 1) * ROWS_A_UNIT)  # one unit at least is done
    with pytest.raises(ProbeError, match=r"rows\.jsonl changed while it was being read") as caught:
        scan(data, out, progress=told, workers=workers, **settings)
    assert caught.value.exit_status == 1
    assert not (out / "manifest.json").exists()
    left = parts(out)
    assert 2 <= len(left) < 2 * UNITS
    assert left.items() <= parts(whole.path).items()
    with pytest.raises(ScanError, match=r"data\.fingerprint"):
        scan(data, out, **settings)
    data.write_text(lines("fox"))
    scan(data, out, **settings)
    assert parts(out) == parts(whole.path)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("at", [1, UNITS * ROWS_A_UNIT])
def test_no_change_makes_a_finished_scan(
    tmp_path: Path, model_folder: str, data: Path, change: Change, at: int
) -> None:
    """Also one behind the last unit, and one that no stamp of a file tells of."""
    out, told = tmp_path / "scan", Changing(data, change, at)
    with pytest.raises(ProbeError, match="changed while it was being read"):
        scan(data, out, progress=told, model=model_folder, rows_per_unit=ROWS_A_UNIT)
    assert told.change is None
    assert not (out / "manifest.json").exists()


def test_a_file_that_is_only_beside_the_unit_ends_a_scan(tmp_path: Path, model_folder: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.jsonl").write_text(lines(name, 9))
    with pytest.raises(ProbeError, match=r"a\.jsonl changed"):
        scan(
            folder,
            tmp_path / "scan",
            model=model_folder,
            rows_per_unit=3,
            progress=Changing(folder / "a.jsonl", grow, at=10),
        )


@pytest.mark.parametrize("change", CHANGES)
def test_a_rollout_ends(tmp_path: Path, model_folder: str, data: Path, change: Change) -> None:
    out = tmp_path / "out.jsonl"
    settings = {"model": model_folder, "rows_per_unit": ROWS_A_UNIT, "max_new_tokens": 2}
    with pytest.raises(ProbeError, match="changed while it was being read"):
        rollout(data, out, progress=Changing(data, change), **settings)
    assert not out.exists()
    data.write_text(lines("fox"))
    done = rollout(data, out, overwrite=change is rewrite_unseen, **settings)
    assert done.answers == UNITS * ROWS_A_UNIT


class Growing(Files):
    """A file to which somebody adds while it is read."""

    def records(self) -> Iterator[Record]:
        for record in super().records():
            yield record
            if record.row == 4:
                grow(self.paths[0])


def test_rows_to_train_on_are_of_one_version(tmp_path: Path, model_folder: str, data: Path) -> None:
    model = load_model(model_folder, device="cpu")
    growing = Growing("rows", [DataFile.at(data, FileOptions())])
    with pytest.raises(ProbeError, match=r"rows\.jsonl changed"):
        Rows.read(growing, ScanSettings(), model, [], str(tmp_path / "cache"))


def test_a_data_set_on_disk_that_changes_ends_a_scan(tmp_path: Path, model_folder: str) -> None:
    import datasets

    rows = [json.loads(line) for line in lines("fox").splitlines()]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    (file,) = (tmp_path / "set").glob("*.arrow")
    told = Changing(file, lambda path: os.utime(path, (1, 1)))
    with pytest.raises(ProbeError, match=r"\.arrow changed"):
        scan(
            tmp_path / "set", tmp_path / "scan", model=model_folder, rows_per_unit=3, progress=told
        )
