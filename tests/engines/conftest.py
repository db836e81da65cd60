"""Data for scans that are disturbed, and what they look like undisturbed."""

from pathlib import Path

import pytest
from running import SETTINGS, hashes, write_data

from eaft_probe import scan


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
