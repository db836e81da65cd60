"""Fixtures shared by the suite: a tiny random model on disk, and the real one where it is."""

import os
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[1]


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


@pytest.fixture(scope="session")
def claims_folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `benchmarks/claims.py` leaves, small."""
    import claims_made  # here: it takes the benchmarks into the import path

    return claims_made.make(shared, tmp_path_factory.mktemp("claims"))
