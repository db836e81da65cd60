"""The README and the pages of docs/ speak of columns, options and settings that exist."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from eaft_probe.analysis.scores import SCORES
from eaft_probe.cli import _run
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.data.formats import FORMATS, infer_format
from eaft_probe.objectives.gates import OBJECTIVES
from eaft_probe.view.plots import PLOTS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")}
GUIDES = [(ROOT / name).read_text(encoding="utf-8") for name in ("AGENTS.md", "CONTRIBUTING.md")]
EVERYTHING = "\n".join([README, *PAGES.values(), *GUIDES])
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHELL = "\n".join(code for kind, code in FENCED.findall(EVERYTHING) if kind == "sh")
INLINE = "\n".join(
    " ".join(c.split()) for c in re.findall(r"`([^`]+)`", FENCED.sub("", EVERYTHING))
)
COMMANDS = re.findall(
    r"(?:-m eaft_probe|\beaft-probe) ([a-z]+)\b([^#\n]*)",
    re.sub(r"\\\n\s*", "", SHELL) + INLINE,
)
MOST_BYTES = 9_000  # of a README that is read to its end


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= MOST_BYTES


def test_every_column_is_listed_with_its_meaning() -> None:
    for s in STATISTICS.values():
        if s.default:
            assert f"| `{s.name}` | {s.unit} | {s.meaning} |" in PAGES["columns"]
        else:
            assert f"`{s.name}`" in PAGES["columns"]


def test_every_objective_score_and_format_is_listed() -> None:
    for name, kind in OBJECTIVES.items():
        assert f"| `{name}` | {kind.formula} |" in PAGES["train"]
    for score in SCORES.values():
        columns = ", ".join(f"`{column}`" for column in score.reads)
        assert f"| `{score.name}` | {score.unit} | {score.meaning} | {columns} |" in PAGES["scores"]
    for name, row_format in FORMATS.items():
        columns = ", ".join(f"`{column}`" for column in row_format.columns)
        assert f"| `{name}` | {columns} | {row_format.meaning} |" in PAGES["data-formats"]


def test_every_row_on_the_formats_page_is_read_as_it_says() -> None:
    rows = re.findall(r"\| `(\{.*\})` \| `([\w-]+)` \|", PAGES["data-formats"])
    for row, name in rows:
        found = infer_format([json.loads(row)], {})
        assert found.name == name, row
        assert not {*found(json.loads(row)).not_read} - {"rejected"}, row
    assert {name for _, name in rows} == set(FORMATS)


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_is_in_the_gallery(name: str) -> None:
    """With when to use it, the command that drew its picture, and the picture."""
    assert f"| `{name}` |" in PAGES["plots"]
    _, found, rest = PAGES["plots"].partition(f"\n## {name}\n")
    section = rest.split("\n## ")[0]
    assert found
    assert f"eaft-probe plot {name} " in section
    assert "**Use it " in section
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", section):
        assert (ROOT / "docs" / picture).stat().st_size <= 120_000
    assert "](pictures/" in section


@pytest.mark.parametrize("command", sorted({c for c, _ in COMMANDS}))
def test_options_of_the_examples_exist(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert _run([command, "--help"]) == 0
    shown = capsys.readouterr().out
    for _, rest in (c for c in COMMANDS if c[0] == command):
        for name in re.findall(r"--[a-z][a-z-]+", rest):
            assert name in shown, f"{command}{rest}"


def test_every_setting_has_a_help_text() -> None:
    from eaft_probe.settings import ScanSettings, TrainSettings

    assert all(f.metadata["help"] for kind in (ScanSettings, TrainSettings) for f in fields(kind))


@pytest.mark.parametrize("loss", ["GatedLoss", "GatedLossMixin"])
def test_the_examples_in_python_run(loss: str, model_folder: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGES["train"], re.DOTALL)
    code = next(b for b in blocks if f"import {loss}\n" in b)
    if "trl" in code:
        pytest.importorskip("trl")
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}]
    from datasets import Dataset

    here = {"rows": Dataset.from_list(rows)}
    on_cpu = f"{str(tmp_path / 'run')!r}, use_cpu=True"
    exec(code.replace("org/name", model_folder).replace('"run"', on_cpu), here)
    assert list((tmp_path / "run").glob("checkpoint-*/model.safetensors"))


def test_the_examples_with_a_scan_run(
    model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the pages on columns and on Python, one after the other in an empty folder."""
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text('{"prompt": "Tom was", "completion": "a sad boy."}\n')
    for page in ("python", "columns"):
        blocks = re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
        assert blocks
        for code in blocks:
            exec(re.sub("smollm2|org/name", model_folder, code), {})
    assert Path("scan/manifest.json").exists()
