"""The commands of the README and the pages run, on a tiny model and a few rows.

Each runs in a copy of a folder that holds what the pages call their data, scans and runs. What
needs a cluster, a launcher, a bucket, workers or the bundled model is run elsewhere.
"""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from eaft_probe.cli import _run

ROOT = Path(__file__).parents[1]
BLOCKS = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
ELSEWHERE = ("s3://", "torchrun", "accelerate", "--engine", "--workers", "org/large", "$o")
DATA = ("data", "held", "chats", "fastchat/dummy_conversation")
# Names for one and the same thing here: commands that differ in nothing else run once.
ONE_NAME = {
    name: one
    for one, names in {
        "scan": "tuned supervised ours demo/scan gsm8k-scan tuned-scan",
        "own-scan": "rollouts theirs chat-scan",
        "run-eaft": "run",
        "data.jsonl": "gsm8k/test.jsonl gsm8k/train.jsonl",
        "org/name": "stories260K",
        "report.html": "both.html two.html three.html tuned.html",
    }.items()
    for name in names.split()
}
ROWS = 24
COLUMNS: dict[str, Callable[[str, str], object]] = {
    "messages=traj": lambda q, a: {"traj": said(q, a, "role", "content")},
    "messages=data.turns": lambda q, a: {"data": {"turns": said(q, a, "role", "content")}},
    "role=from,content=value": lambda q, a: {"messages": said(q, a, "from", "value")},
    "question=prompt,answer=reply": lambda q, a: {"prompt": q, "reply": a},
}
SMALLER = {
    "scan": {"--estimate-rows": "30"},
    "train": {"--max-steps": "1", "--group-rows": "2", "--limit": "4"},
    "rollout": {"--max-new-tokens": "4", "--n": "1", "--limit": "4"},
    "gradients": {"--sample": "12"},
}


def commands() -> list[str]:
    """Every distinct command line of the pages, without its comment."""
    pages = [ROOT / "README.md", ROOT / "AGENTS.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(b for p in pages for b in BLOCKS.findall(p.read_text(encoding="utf-8")))
    lines = (line.strip() for line in re.sub(r"\\\n\s*", "", text).splitlines())
    found = [shlex.split(c, comments=True) for c in lines if c.startswith("eaft-probe")]
    named = {shlex.join(ONE_NAME.get(word, word) for word in words) for words in found}
    return sorted(c for c in named if not any(word in c for word in ELSEWHERE))


def said(question: str, answer: str, role: str, content: str) -> list[dict[str, str]]:
    return [{role: "user", content: question}, {role: "assistant", content: answer}]


def write(path: Path, row: Callable[[str, str], object], word: str) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = (row(f"{i} and {word}?", f"{i + 1}, and the {word} {i}.") for i in range(ROWS))
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def run(command: str, model: str) -> int:
    """The status of the command, with fewer rows, steps and tokens, under the tiny model."""
    _, name, *rest = shlex.split(command)
    rest = [model if word == "org/name" else word for word in rest]
    if name in ("scan", "train", "rollout", "render") and "--model" not in rest:
        rest += ["--model", model]
    for option, value in SMALLER.get(name, {}).items():
        if option in rest:
            rest[rest.index(option) + 1] = value
        elif option != "--estimate-rows":
            rest += [option, value]
    return _run([name, *rest])


@pytest.fixture(scope="module")
def prepared(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of: data, scans and runs."""
    folder = tmp_path_factory.mktemp("prepared")
    for i, name in enumerate((*DATA, "a", "b", "c")):
        ending = "json" if name.startswith("fastchat/") else "jsonl"
        write(folder / f"{name}.{ending}", lambda q, a: {"question": q, "answer": a}, f"word{i}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # an untrained model is never sure: without a wide rule there is no conflict to zoom in on
        statistics = "--statistics entropy_top5,entropy_top50,grad_hidden --entropy-below 9"
        for data, scans in {"data": ("scan", "base"), "held": ("own-scan",)}.items():
            assert (
                run(f"eaft-probe scan {data}.jsonl {statistics} --out {scans[0]}", model_folder)
                == 0
            )
            for other in scans[1:]:
                shutil.copytree(scans[0], other)
        for name in "abc":
            assert run(f"eaft-probe scan {name}.jsonl --out scan-{name}", model_folder) == 0
        assert run("eaft-probe gradients scan", model_folder) == 0
        own = "rollout data.jsonl --max-new-tokens 8 --out drawn.jsonl --then-scan own --model"
        assert _run([*own.split(), model_folder]) == 0
        step = (
            "forecast data.jsonl --retain-data chats.jsonl --eval-data held.jsonl --objective sft"
        )
        assert _run([*step.split(), "--out", "forecast", "--model", model_folder]) == 0
        for name in ("sft", "eaft"):
            assert (
                run(
                    f"eaft-probe train data.jsonl --out run-{name} --objective {name}", model_folder
                )
                == 0
            )
    return folder


@pytest.mark.usefixtures("coarse_pixels")
@pytest.mark.parametrize("command", commands())
def test_commands_of_the_pages_run(
    command: str, prepared: Path, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, folder = shlex.split(command), tmp_path / "folder"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    if "--columns" in words:
        write(Path("data.jsonl"), COLUMNS[words[words.index("--columns") + 1]], "other")
    for option in ("--out", "--then-scan"):  # what it makes is not there yet
        if option in words:
            made = Path(words[words.index(option) + 1])
            shutil.rmtree(made, ignore_errors=True)
    assert run(command, model_folder) in ((0, 3) if "--fail-if" in words else (0,))
