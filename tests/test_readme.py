"""The README speaks of columns, flags and settings that exist."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from eaft_probe.cli import _run
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.objectives.gates import OBJECTIVES
from eaft_probe.view.plots import PLOTS

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = re.findall(r"^eaft-probe (\w+)(.*?)(?:#.*)?$", README, re.MULTILINE)


def test_every_default_column_is_listed_with_its_meaning() -> None:
    for s in STATISTICS.values():
        if s.default:
            assert f"| `{s.name}` | {s.unit} | {s.meaning} |" in README


def test_every_objective_and_plot_is_listed() -> None:
    for name, kind in OBJECTIVES.items():
        assert f"| `{name}` | {kind.formula} |" in README
    for name in PLOTS:
        assert f"| `{name}` |" in README


@pytest.mark.parametrize("command", sorted({c for c, _ in COMMANDS}))
def test_flags_of_the_examples_exist(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert _run([command, "--help"]) == 0
    shown = capsys.readouterr().out
    for _, rest in (c for c in COMMANDS if c[0] == command):
        for name in re.findall(r"--[a-z-]+", rest):
            assert name in shown


def test_every_setting_has_a_help_text() -> None:
    from eaft_probe.settings import ScanSettings, TrainSettings

    assert all(f.metadata["help"] for kind in (ScanSettings, TrainSettings) for f in fields(kind))


@pytest.mark.parametrize("loss", ["GatedLoss", "GatedLossMixin"])
def test_the_examples_in_python_run(loss: str, model_folder: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = next(b for b in blocks if f"import {loss}\n" in b)
    if "trl" in code:
        pytest.importorskip("trl")
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}]
    from datasets import Dataset

    here = {"rows": Dataset.from_list(rows)}
    on_cpu = f"{str(tmp_path / 'run')!r}, use_cpu=True"
    exec(code.replace("org/name", model_folder).replace('"run"', on_cpu), here)
    assert list((tmp_path / "run").glob("checkpoint-*/model.safetensors"))
