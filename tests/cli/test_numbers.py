"""What commands print of very little data: numbers and plurals as people write them."""

import json
import re
from pathlib import Path

import pytest

from eaft_probe.cli import _run

UNUSUAL = {
    "a plural of one": r"(?<![\d.,])1 (?!is |was |has )[a-z]+s\b",
    "a number that is rounded away": r"(?<!\d)0\.0+(?![\d])",
    "a power of ten with a zero": r"\de-0\d",
    "digits that nobody reads": r"\d\.\d{6}",
    "no number": r"\bnan\b|\bNone\b",
}
COMMANDS = {
    "flag": ["flag", "one", "--entropy-below", "9", "--prob-below", "1"],
    "show": ["show", "one", "--worst", "1"],
    "example": ["show", "one", "--example", "0"],
    "export": ["show", "one", "--export", "rows.jsonl"],
    "compare": ["compare", "one", "other"],
    "itself": ["compare", "one", "one"],
    "gates": ["plot", "gates", "one", "--out", "gates.svg", "--overwrite"],
    "gradients": ["gradients", "one", "--sample", "8"],
    "render": ["render", "one.jsonl", "--model", "model"],
    "dry run": ["scan", "one.jsonl", "--model", "model", "--dry-run", "--price-per-hour", "1"],
    "rate": ["scan", "one.jsonl", "--model", "model", "--dry-run", "--tokens-per-second", "2e6"],
    "rollout": ["rollout", "one.jsonl", "--model", "model", "--max-new-tokens", "2"],
    "train": ["train", "one.jsonl", "--model", "model", "--max-steps", "1", "--group-rows", "1"],
    **{name: ["list", name] for name in ("objectives", "statistics", "formats", "plots")},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> Path:
    """Scans of a single row."""
    path = tmp_path_factory.mktemp("one")
    (path / "model").symlink_to(model_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for name, answer in (("one", "it is here"), ("other", "no more")):
            row = json.dumps({"question": "what is it", "answer": answer})
            Path(f"{name}.jsonl").write_text(row)
            assert _run(["scan", f"{name}.jsonl", "--model", "model", "--out", name]) == 0
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_lines_read_well(
    command: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    assert _run(COMMANDS[command]) == 0
    printed = capsys.readouterr()
    for line in (printed.out + printed.err).splitlines():
        for what, pattern in UNUSUAL.items():
            assert not re.search(pattern, line), f"{what}: {line}"
