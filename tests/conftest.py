"""Fixtures shared by the suite: a tiny random model on disk, and the real one where it is."""

import gc
import importlib
import os
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import tiny
from forked import Forked

ROOT = Path(__file__).parents[1]


def pytest_collection_finish() -> None:
    """A trainer collects garbage at its end, and went through all of torch and of the tests each
    time: 0.3 s of a run of 0.5 s. Hypothesis looks for referrers when it is imported, which are
    hidden then."""
    importlib.import_module("hypothesis")
    gc.freeze()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random Llama with a ChatML template, saved as a plain folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny.build("llama", max_position_embeddings=1024).save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 1024
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and models that do not ship with the project."""
    folder = Path(os.environ.get("EAFT_PROBE_SHARED", ROOT.parent / "shared"))
    if not (folder / "models").is_dir():
        pytest.skip(f"no real data: {folder} is absent; set EAFT_PROBE_SHARED")
    return folder


@pytest.fixture(scope="session")
def stories(shared: Path) -> str:
    return str(shared / "models" / "stories260K")


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that the local engine need not wait for: forks instead of interpreters."""
    from eaft_probe.engines.local import Worker
    from eaft_probe.engines.worker import serve

    def started(cls: type[Worker], number: int, device: str) -> Worker:
        ours, theirs = Pipe()
        process: Any = Forked(serve, theirs, device or None)
        theirs.close()
        return cls(ours, f"worker {number}", process)

    monkeypatch.setattr(Worker, "started", classmethod(started))


@pytest.fixture
def coarse_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the time for the same figure."""
    from eaft_probe.view.plots.chart import STYLE

    monkeypatch.setitem(STYLE, "savefig.dpi", 70)


@pytest.fixture(scope="session")
def claims_folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `benchmarks/claims.py` leaves, small."""
    import claims_made  # here: it takes the benchmarks into the import path

    return claims_made.make(shared, tmp_path_factory.mktemp("claims"))
