"""The losses of ten optimizer steps under every objective, as text to be read in a review.

`EAFT_PROBE_GOLDEN=write pytest tests/objectives/test_golden.py` writes them anew; a change is a
commit of its own, with the reason.
"""

import os
from pathlib import Path

import pytest
from published import sure, trainer_of

from eaft_probe.objectives.gates import OBJECTIVES, objective

GOLDEN = Path(__file__).parent / "golden"
STEPS = 10
# Without vector instructions a loss was 2e-5 of its size off, and 8e-5 from weights 3e-7 of theirs
# away. (With Adam's usual epsilon of 1e-8, whole steps along the noise in zero gradients made that
# 1e-3.) A changed formula is off by more in the first step.
NEAR = 1e-4


def losses(name: str, folder: Path) -> list[float]:
    """Of ten steps over all rows in two padded micro-batches, as the log has them."""
    trainer = trainer_of(
        folder,
        sure(),
        objective(name),
        max_steps=STEPS,
        learning_rate=1e-3,
        adam_epsilon=1e-3,
        lr_scheduler_type="constant",
    )
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ten_steps_have_the_losses_of_before(name: str, tmp_path: Path) -> None:
    file, found = GOLDEN / f"{name}.txt", losses(name, tmp_path)
    if os.environ.get("EAFT_PROBE_GOLDEN") == "write":
        file.write_text("".join(f"{i} {loss:.6g}\n" for i, loss in enumerate(found, 1)))
    assert file.exists(), "write it with EAFT_PROBE_GOLDEN=write and review its losses"
    golden = [line.split() for line in file.read_text().splitlines()]
    assert [int(step) for step, _ in golden] == list(range(1, STEPS + 1))
    assert found == pytest.approx([float(loss) for _, loss in golden], rel=NEAR)
    assert abs(found[-1] - found[0]) > 0.1 * found[0], "the losses hardly move"


def test_every_file_has_its_objective() -> None:
    assert {f.stem for f in GOLDEN.iterdir()} == set(OBJECTIVES)
