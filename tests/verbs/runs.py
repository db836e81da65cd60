"""Data for training runs, and what of two runs is compared."""

import json
from pathlib import Path

import pandas as pd
import torch
from pandas.testing import assert_frame_equal
from safetensors.torch import load_file


def write_rows(path: Path, count: int, words: int) -> None:
    """Rows of unequal length, and one that is malformed."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {i}"},
                {"role": "assistant", "content": "the fox jumps " * (1 + i % words)},
            ]
        }
        for i in range(count)
    ]
    path.write_text("\n".join([*map(json.dumps, rows), "{broken"]))


def require_equal(found: Path, wanted: Path) -> None:
    """The logs and the weights of two runs."""
    assert_frame_equal(log(found), log(wanted), rtol=1e-5, atol=1e-6)  # counts exactly
    theirs = weights(wanted)
    for name, weight in weights(found).items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-5, atol=1e-5)


def log(folder: Path) -> pd.DataFrame:
    """But for the folder's name."""
    return pd.read_parquet(folder / "log.parquet").drop(columns="run")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))
