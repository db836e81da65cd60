"""What `transformers` will take away is found before it goes: no step of a run warns of it."""

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from eaft_probe import rollout, scan, train

WORDS = ("deprecat", "will be removed", "future version")


class Heard(logging.Handler):
    """What is logged of a future without a name that is used here."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if any(word in line.lower() for word in WORDS):
            self.lines.append(line)


@pytest.fixture
def heard() -> Iterator[Heard]:
    logger, heard = logging.getLogger("transformers"), Heard()
    logger.addHandler(heard)
    yield heard
    logger.removeHandler(heard)


def test_scan_rollout_and_train_use_nothing_that_goes(
    model_folder: str, tmp_path: Path, heard: Heard
) -> None:
    same = {"question": "the quick brown fox jumps over the lazy dog " * 3}
    data = tmp_path / "rows.jsonl"  # a common beginning, which the model reads once
    data.write_text("\n".join(json.dumps(same | {"answer": f"it is {n}"}) for n in range(6)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.filterwarnings("error", category=DeprecationWarning, module="transformers|eaft_")
        done = scan(str(data), tmp_path / "s", model=model_folder)
        rollout(str(data), tmp_path / "r.jsonl", model=model_folder, max_new_tokens=2)
        train(str(data), tmp_path / "t", model=model_folder, objective="eaft", max_steps=1)
    assert done.manifest["counts"]["examples"] == 6
    assert heard.lines == []


def test_a_warning_is_heard(heard: Heard) -> None:
    logging.getLogger("transformers.any").warning("`past_key_values` is deprecated")
    assert heard.lines == ["`past_key_values` is deprecated"]
