"""Data for scans that are disturbed, and what they look like undisturbed."""

from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
from forked import Forked
from running import SETTINGS, hashes, write_data

from eaft_probe import scan
from eaft_probe.engines.local import Worker
from eaft_probe.engines.worker import serve


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="session")
def undisturbed(data: Path, model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan by this process alone."""
    out = tmp_path_factory.mktemp("undisturbed") / "scan"
    scan(data, out, model=model_folder, **SETTINGS)
    assert len(hashes(out)) == 24
    return out


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that the local engine need not wait for: forks instead of interpreters."""

    def started(cls: type[Worker], number: int, device: str) -> Worker:
        ours, theirs = Pipe()
        process: Any = Forked(serve, theirs, device or None)
        theirs.close()
        return cls(ours, f"worker {number}", process)

    monkeypatch.setattr(Worker, "started", classmethod(started))
