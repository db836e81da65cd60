"""Every objective can learn 16 rows by heart, with the real model of 260 thousand parameters.

The nll is the plain one of all trained tokens, whatever the gates leave of it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from eaft_probe import Scan, scan, train
from eaft_probe.objectives.gates import OBJECTIVES
from eaft_probe.objectives.scan_columns import OF_BASE

STORIES = [
    ("Lily had a red ball.", " One day she threw it over the wall, and her dog ran after it."),
    ("Tom was a sad boy.", " His kite was stuck in a tall tree, so his mom got a long stick."),
    ("The cat sat on a mat.", " It saw a little mouse and gave it some cheese to eat."),
    ("Once there was a frog.", " He liked to jump in the mud, but his friends did not like mud."),
    ("Mia went to the park.", " She found a shiny stone and put it in her pocket for grandma."),
    ("Ben had a big truck.", " He filled it with sand and drove it all the way to the lake."),
    ("It was a cold night.", " The bird had no nest, so the owl let it sleep in the barn."),
    ("Sue baked a cake.", " She forgot the sugar, but everyone ate it and asked for more."),
    ("A bear lived in a cave.", " He was afraid of the dark, so he kept a small lamp by his bed."),
    ("Max lost his hat.", " The wind took it to the river, where a duck wore it as a boat."),
    ("Anna wanted to paint.", " She had only blue paint, so she painted the sea and the sky."),
    ("The moon was very round.", " A boy asked if he could eat it, and his dad laughed out loud."),
    ("Two bugs met on a leaf.", " They shared a drop of water and talked until the sun came up."),
    ("Sam was good at math.", " He counted nine eggs, but the hen said that there were ten."),
    ("There was an old robot.", " It could not walk, so the children pushed it home in a cart."),
    ("Jack told a lie.", " He said a wolf ate his shoes, but they were under the table."),
]
STEPS = {
    "learning_rate": 2e-3,
    "lr_scheduler_type": "constant",
    "max_steps": 16,
    "per_device_train_batch_size": 16,
    "logging_steps": 1,
    "save_steps": 1000,
}
FALL = 0.3  # the least share of the first nll that must go

# Their gates are 0 for the very tokens that are to be learned: of these 482, 44 % have p < 0.1 and
# 65 % p < 0.4. What is let through is learned (loss 0.418 → 0.003 and 0.074 → 0.000 nats) at the
# expense of the rest: all tokens go from 2.99 to 3.01 and 4.11 nats. At a threshold that lets 95 %
# of them through, 2.99 → 0.7. (dft and asft, whose gate is p: 2.99 → 1.92 and 1.60.) idft's gate
# is p² where the model is sure of something else.
GATED_AWAY: dict[str, dict[str, float]] = {  # objective → fields that let nearly all through
    "profit": {"threshold": 0.0001},
    "stm": {"threshold": 0.0001},
    "idft": {"most": 0.1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in STORIES))
    return str(path)


@pytest.fixture(scope="module")
def scanned(data: str, stories: str, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    return scan(data, tmp_path_factory.mktemp("scan") / "s", model=stories)


def learned(
    name: str, data: str, stories: str, scanned: Scan, out: Path, fields: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Columns of the log over all tokens, one number a step; each step sees all rows."""
    given: dict[str, Any] = {"model": stories, "objective": name, "set": fields}
    if set(OBJECTIVES[name](**fields).reads) & set(OF_BASE):
        given["mask"] = str(scanned.path)
    log = [r for r in train(data, out, **given, **STEPS).log if r["group"] == "all"]
    return {column: [row[column] for row in log] for column in ("nll", "loss")}


def fall(figures: list[float]) -> float:
    return 1 - figures[-1] / figures[0]


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - set(GATED_AWAY)))
def test_sixteen_rows_are_learned(name, data, stories, scanned, tmp_path) -> None:
    found = learned(name, data, stories, scanned, tmp_path / "r", {})
    assert found["nll"][0] == pytest.approx(2.988, abs=2e-3)  # the model as it came
    assert fall(found["nll"]) > FALL


@pytest.mark.parametrize("name", GATED_AWAY)
def test_only_what_a_threshold_lets_through_is_learned(
    name, data, stories, scanned, tmp_path
) -> None:
    found = learned(name, data, stories, scanned, tmp_path / "a", {})
    assert fall(found["loss"]) > 0.9
    assert fall(found["nll"]) < FALL
    found = learned(name, data, stories, scanned, tmp_path / "b", GATED_AWAY[name])
    assert fall(found["nll"]) > FALL
