"""Settings that choose what is read of the data are refused where the data leave no choice."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from files_made import ROWS, jsonl, write

from eaft_probe.data.opening import open_data, require_obeyed
from eaft_probe.errors import BadInput
from eaft_probe.settings import RenderSettings, ScanSettings
from eaft_probe.verbs.render import render
from eaft_probe.verbs.scan.scan import scan


def obeyed(data: Any, **settings: Any) -> None:
    chosen = ScanSettings(**settings)
    require_obeyed(open_data(data, chosen), chosen)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"split": "test"}, "has no splits: remove --split"),
        ({"config_name": "main"}, "has no configurations: remove --config-name"),
        ({"data_revision": "v1"}, "has no revisions: remove --data-revision"),
    ],
)
def test_what_chooses_nothing_is_refused(
    tmp_path: Path, given: dict[str, str], message: str
) -> None:
    path = write(tmp_path, "in/data.jsonl", jsonl(ROWS))
    array = write(tmp_path, "d.json", json.dumps({"data": ROWS}).encode())
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    for data in (path, path.parent, tmp_path / "in" / "*", array, tmp_path / "saved", ROWS, None):
        obeyed(data)
        with pytest.raises(BadInput, match=message):
            obeyed(data, **given)


def test_what_chooses_is_obeyed(tmp_path: Path) -> None:
    write(tmp_path, "in/test.jsonl", jsonl(ROWS))
    splits = write(tmp_path, "d.json", json.dumps({"test": ROWS}).encode())
    saved = datasets.DatasetDict(test=datasets.Dataset.from_list(ROWS))
    saved.save_to_disk(tmp_path / "saved")
    for data in (tmp_path / "in", splits, tmp_path / "saved", saved):
        obeyed(data, split="test")


def test_a_seed_draws_a_sample() -> None:
    for verb in (scan, render):
        with pytest.raises(BadInput, match="add --sample N"):
            list(verb(ROWS, seed=1))  # type: ignore[operator]
    RenderSettings(seed=1, sample=2).require_sample()
