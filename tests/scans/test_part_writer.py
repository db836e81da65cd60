"""Parts of one folder are written by several processes at once."""

from pathlib import Path

import pyarrow as pa
import pytest

from eaft_probe.scans.part_writer import part_file, unit_report, write_part
from eaft_probe.storage.folder import Folder


def test_a_folder_that_another_process_has_just_made_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is empty until that process has opened its file there, and was taken for a leftover."""
    gone = list[Path]()
    remove = Path.rmdir
    monkeypatch.setattr(Path, "rmdir", lambda path: (gone.append(path), remove(path)))
    (tmp_path / "examples").mkdir()
    report = {"counts": {"trained_tokens": 2}}
    write_part(Folder(tmp_path), 0, pa.table({"prob": [0.5, 0.1]}), pa.table({"n": [1]}), report)
    assert unit_report(tmp_path, 0) is not None
    assert part_file(tmp_path, "examples", 0).exists()
    assert not gone
