"""`--help` of every command: panels, defaults, examples; only options that do something there."""

import re
import shlex
from dataclasses import fields

import pytest
import typer

from eaft_probe.cli import _run, app
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.settings import CompareSettings, TrainSettings

TOKENS = ["Data", "Chat template", "Trained tokens", "Model"]
PANELS = {
    "scan": [*TOKENS, "Conflict rule", "Output", "Speed and machines", "Estimate"],
    "rollout": ["Data", "Chat template", "Model", "Sampling", "Output", "Speed and machines"],
    "train": [*TOKENS, "Objective", "Optimizer", "LoRA", "Log and measurements", "Output"],
    "gradients": ["Model", "Sampling", "Output"],
    "forecast": [
        *TOKENS,
        "LoRA",
        "Log and measurements",
        "Conflict rule",
        "Output",
        "Speed and machines",
    ],
    "render": [*TOKENS, "Output"],
    "flag": ["Conflict rule", "Output"],
    "show": ["Output"],
    "export": ["Data", "Output"],
    "compare": ["Comparison", "Output"],
    "merge": ["Output"],
    "plot": ["Figure", "Output"],
    "report": ["Comparison", "Output"],
    "list": [],
}
DEFAULTS = {
    "scan": {
        "--model": "smollm2",
        "--max-length": "the model's context",
        "--entropy-below": f"{ConflictRule().entropy_below:.3f}",
        "--prob-below": f"{ConflictRule().prob_below}",
        "--rows-per-unit": "256",
        "--out": "eaft-scan",
    },
    "rollout": {"--temperature": "1", "--seed": "0", "--out": "rollout.jsonl"},
    "train": {"--learning-rate": "1e-5", "--eval-tokens": "200000", "--objective": "sft"},
    "gradients": {"--sample": "512", "--dtype": "float32"},
    "forecast": {"--out": "eaft-forecast", "--checks": "4"},
    "render": {"--split": "train", "--train-on": "assistant"},
    "show": {"--worst": "3"},
    "export": {"--out": "export.jsonl"},
    "compare": {"--delta": f"ln 2, or {CompareSettings().delta:.3f}"},
    "merge": {"--out": "eaft-merged"},
    "plot": {"--objective": "sft,eaft", "--out": "DIR-KIND.png"},
    "report": {"--out": "report.html"},
}
IDLE = {  # options of other commands, which would do nothing here
    "rollout": ("--train-on", "--turns", "--stride", "--quantile"),
    "render": ("--dtype", "--device", "--stride", "--keep", "--workers", "--quantile"),
    "train": ("--quantile", "--keep-tokens", "--workers"),
    "gradients": ("--limit", "--format"),
    "flag": ("--model", "--out"),
}


def shown(command: str, width: int, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        assert _run([command, "--help"]) == 0
    return capsys.readouterr().out


def rows(text: str) -> dict[str, str]:
    """The line of each option."""
    lines = (line.strip("│ ") for line in text.splitlines() if line.startswith("│ --"))
    return {line.split()[0]: line for line in lines}


def test_every_command_is_held_here() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(PANELS) == set(commands)


@pytest.mark.parametrize("command", PANELS)
def test_options_lie_in_panels(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    titles = re.findall(r"^╭─ (.*?) ─+╮$", shown(command, 100, capsys), re.MULTILINE)
    assert titles == ["Arguments", "Options", *PANELS[command]]


@pytest.mark.parametrize("command", PANELS)
def test_names_are_whole_on_a_narrow_terminal(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow, wide = shown(command, 80, capsys), shown(command, 300, capsys)
    assert rows(narrow).keys() == rows(wide).keys()
    assert "--no-" not in "".join(rows(wide))


@pytest.mark.parametrize("command", PANELS)
def test_no_type_is_shown_that_says_nothing(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As typer writes it for a switch and an argument."""
    assert not re.search(r"<(bool|str|list)", shown(command, 100, capsys))


@pytest.mark.parametrize("command", DEFAULTS)
def test_defaults_are_shown(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In brackets, which were taken for markup."""
    lines = rows(shown(command, 300, capsys))
    for name, default in DEFAULTS[command].items():
        assert lines[name].endswith(f"[default: {default}]"), lines[name]


def test_every_default_of_a_number_or_name_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = rows(shown("train", 300, capsys))
    for setting in fields(TrainSettings):
        line = lines["--" + setting.name.replace("_", "-")]
        stated = isinstance(setting.default, int | float | str) and setting.default is not False
        assert not stated or "[default: " in line, line


@pytest.mark.parametrize("command", PANELS)
def test_two_examples_with_options_that_there_are(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(command, 300, capsys)
    _, found, examples = text.partition("Examples:")
    lines = [shlex.split(line) for line in examples.splitlines() if line.strip()]
    assert found
    assert [line[:2] for line in lines] == [["eaft-probe", command]] * 2
    for word in (w for line in lines for w in line if w.startswith("--")):
        assert word in rows(text), word


@pytest.mark.parametrize(
    ("command", "option"), [(c, o) for c, options in IDLE.items() for o in options]
)
def test_an_option_that_would_do_nothing_is_refused(
    command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert option not in rows(shown(command, 300, capsys))
    assert _run([command, "x", option, "1"]) == 2
    assert f"No such option: {option}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "d.jsonl", "--eval-tokens", "5"], "add --eval-data or --retain-data"),
        (["train", "d.jsonl", "--eval-steps", "5"], "add --eval-data or --retain-data"),
        (["train", "d.jsonl", "--base-scan", "s", "--group-rows", "5"], "remove --group-rows"),
        (["train", "d.jsonl", "--lora-alpha", "8"], "add --lora-r"),
        (["scan", "d.jsonl", "--estimate-rows", "50"], "add --dry-run"),
        (["scan", "d.jsonl", "--address", "auto"], "add --engine ray"),
        (["show", "s", "--overwrite"], "add --export"),
        (["show", "s", "--example", "1", "--worst", "5"], "give only one"),
        (["report", "s", "--delta", "1"], "add --against"),
    ],
    ids=str,
)
def test_an_option_that_needs_another_says_so(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(arguments) == 2
    assert said in capsys.readouterr().err


# --- completion ---


def completed(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """What bash offers for the last of the words."""
    monkeypatch.setenv("_EAFT_PROBE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    with pytest.raises(SystemExit):
        _run([])
    return capsys.readouterr().out.split()


def test_shells_complete_commands_options_and_choices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert completed("eaft-probe re", monkeypatch, capsys) == ["render", "report"]
    assert completed("eaft-probe scan --ov", monkeypatch, capsys) == ["--overwrite"]
    assert completed("eaft-probe scan --turns ", monkeypatch, capsys) == ["together", "each"]


def test_the_help_says_how_completion_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["--help"]) == 0
    assert "--install-completion" in capsys.readouterr().out
