"""The bundled data under the bundled model: the one slow test, on the real thing."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

import eaft_probe
from eaft_probe import scan
from eaft_probe.data.sources import DEMO
from eaft_probe.model.resolve import BUNDLED_PACKAGE, INSTALL_BUNDLED

ROWS = [json.loads(line) for line in DEMO.read_text().splitlines()]


def test_demo_rows_are_what_the_readme_says() -> None:
    assert len(ROWS) == 120
    assert sum(row["planted"] for row in ROWS) == 40
    assert set(Counter(row["topic"] for row in ROWS).values()) == {24}
    for row in ROWS:
        answer = row["messages"][-1]["content"]
        assert answer.count(row["planted_text"]) == 1 or not row["planted"]
        assert bool(row["planted_text"]) == row["planted"]


@pytest.mark.skipif(
    importlib.util.find_spec(BUNDLED_PACKAGE) is None, reason=f"no model: {INSTALL_BUNDLED}"
)
def test_a_planted_error_is_found_where_it_was_planted(tmp_path: Path) -> None:
    """Carbon monoxide instead of dioxide: the model is sure, and says so."""
    index = next(i for i, row in enumerate(ROWS) if row["planted_text"] == "monoxide")
    done = scan([ROWS[index]], tmp_path / "scan", model="smollm2")
    found = done.conflicts().set_index("token").loc[" monoxide"]
    assert found["top1"] == " dioxide"
    assert found["before"].endswith("they turn carbon")
    trained = "".join(done.tokens()["token"].astype(str))
    assert trained == ROWS[index]["messages"][-1]["content"] + "<|im_end|>"
    assert done.examples()["text"][0].startswith("<|im_start|>system\nYou are a helpful AI")


def test_the_package_carries_its_data() -> None:
    assert DEMO.is_relative_to(Path(eaft_probe.__file__).parent)
