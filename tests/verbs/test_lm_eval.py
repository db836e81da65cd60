"""A checkpoint of `train` is one that lm-eval scores, and both read the same text alike.

The harness counts the line break between question and answer to the answer, a scan to the prompt.
It is the same for every answer, so the differences between the answers' log-likelihoods agree.
"""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from eaft_probe import scan
from eaft_probe.cli import _run

lm_eval = pytest.importorskip("lm_eval", reason="no lm-eval: pip install 'eaft-probe[eval]'")
from lm_eval.__main__ import cli_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

# Without the 14,000 files of tasks that it ships, which it reads in 8 s before every evaluation.
TASKS = TaskManager(include_defaults=False)
PAGE = (Path(__file__).parents[2] / "docs/train.md").read_text(encoding="utf-8")
ASKED = [
    ("Lily had a red ball.", ["She liked to play with it.", "It lid cup was tin."], 0),
    ("Tom was a sad boy.", ["Ran blue the go table.", "He wanted to go home."], 1),
    ("Ben went to the park.", ["Oak six not.", "He saw a big dog.", "Yet on in the."], 1),
    ("The cat sat on a mat.", ["It was very happy.", "Far zip the zoo of."], 1),  # wrongly marked
]
TRAINED = [(question, answers[label]) for question, answers, label in ASKED[:3]]
STORIES = ["Lily had a red ball. She liked it.", "Tom ran to his mom.\nShe was happy."]
STEPS = ["--max-steps", "4", "--logging-steps", "2", "--learning-rate", "1e-3"]
PERPLEXITY = {
    "task": "perplexity",
    "dataset_path": "json",
    "test_split": "train",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "word_perplexity"}],
}


@pytest.fixture
def choices(tmp_path: Path) -> dict[str, Any]:
    """The page's task, as a file beside its rows and as what it holds."""
    text = next(b for b in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "choices" in b)
    (tmp_path / "choices.yaml").write_text(text)
    rows = [{"question": q, "choices": c, "label": label} for q, c, label in ASKED]
    write(tmp_path / "choices.jsonl", rows)
    task: dict[str, Any] = yaml.safe_load(text)
    return task


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def train(rows: list[dict[str, Any]], model: str, out: Path, *flags: str) -> str:
    """The folder that the command leaves after four steps."""
    data = write(out.with_suffix(".jsonl"), rows)
    assert _run(["train", data, "--model", model, "--out", str(out), *STEPS, *flags]) == 0
    return str(out)


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


@pytest.fixture
def command_of_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Runs the page's command without a network; what it writes, samples by task."""
    (line,) = re.findall(r"^lm_eval (.*choices\.yaml.*)$", PAGE.replace("\\\n", ""), re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lm_eval", *shlex.split(line)])
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # which the command sets
    for config in (datasets.config, constants):
        monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **given: TASKS)

    def ran() -> dict[str, Any]:
        cli_evaluate()
        (results,) = tmp_path.rglob("results_*.json")
        (samples,) = tmp_path.rglob("samples_choices_*.jsonl")
        rows = [json.loads(row) for row in samples.read_text().splitlines()]
        return json.loads(results.read_text()) | {"samples": {"choices": rows}}

    return ran


def evaluate(task: dict[str, Any], rows: Path, model_args: str, **given: Any) -> dict[str, Any]:
    """The same from Python."""
    files = {"data_files": str(rows), "cache_dir": str(rows.parent / "cache")}
    found: dict[str, Any] = lm_eval.simple_evaluate(
        "hf",
        f"{model_args},dtype=float32",
        tasks=[task | {"dataset_kwargs": files}],
        task_manager=TASKS,
        device="cpu",
        batch_size=3,
        bootstrap_iters=0,
        **given,
    )
    return found


def of_answers(found: dict[str, Any], task: str = "choices") -> list[np.ndarray]:
    """Log-likelihoods of each row's answers, as the harness gives them."""
    samples = sorted(found["samples"][task], key=lambda s: s["doc_id"])
    return [np.array([float(np.ravel(r)[0]) for r in s["resps"]]) for s in samples]


def by_hand(model: Any, tokenizer: Any, context: str, answer: str) -> float:
    """ln p of the tokens of `answer` after those of `context`, one by one, in float64."""
    ids = tokenizer(context + answer)["input_ids"]
    start = max(1, len(tokenizer(context)["input_ids"]))
    with torch.no_grad():
        logits = model.double()(torch.tensor([ids])).logits[0]
    assert logits.dtype == torch.float64
    return sum(float(logits[i - 1].log_softmax(-1)[ids[i]]) for i in range(start, len(ids)))


def all_by_hand(model: Any, tokenizer: Any, chat: bool = False) -> list[np.ndarray]:
    def context(question: str) -> str:
        if not chat:
            return question
        asked = conversation(question, "")["messages"][:1]
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        return str(text).removesuffix("\n")

    return [
        np.array([by_hand(model, tokenizer, context(question), "\n" + a) for a in answers])
        for question, answers, _ in ASKED
    ]


def accuracy(found: list[np.ndarray]) -> float:
    return float(np.mean([np.argmax(f) == a[2] for f, a in zip(found, ASKED, strict=True)]))


def agree(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), rtol=1e-5)


def scanned(rows: list[dict[str, Any]], model: str, out: Path, **given: Any) -> np.ndarray:
    """The sum of `logprob` over each row's tokens but its last, the end of text or turn."""
    tokens = scan(rows, out, model=model, **given).tokens(["example", "position", "logprob"])
    tokens = tokens.sort_values(["example", "position"])
    return np.array([group["logprob"][:-1].sum() for _, group in tokens.groupby("example")])


def differences_agree(found: list[np.ndarray], sums: np.ndarray) -> None:
    ends = np.cumsum([len(f) for f in found])[:-1]
    for ours, theirs in zip(np.split(sums, ends), found, strict=True):
        np.testing.assert_allclose(ours - ours[0], theirs - theirs[0], atol=1e-3)


PAIRS = [{"prompt": q, "completion": a} for q, a in TRAINED]
ANSWERS = [{"prompt": q, "completion": a} for q, answers, _ in ASKED for a in answers]


@pytest.fixture(scope="module")
def run(stories: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return train(PAIRS, stories, tmp_path_factory.mktemp("eaft") / "run", "--objective", "eaft")


@pytest.mark.usefixtures("choices")
def test_a_run_is_scored_as_it_is(
    run: str, stories: str, command_of_page: Callable[[], Any], tmp_path: Path
) -> None:
    (tmp_path / "run").symlink_to(run)
    harness = command_of_page()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    found, expected = of_answers(harness), all_by_hand(model, tokenizer)
    agree(found, expected)
    assert harness["results"]["choices"]["acc,none"] == accuracy(expected) == 0.75
    base = all_by_hand(AutoModelForCausalLM.from_pretrained(stories), tokenizer)
    assert max(abs(f - b).max() for f, b in zip(found, base, strict=True)) > 1
    differences_agree(found, scanned(ANSWERS, run, tmp_path / "answers"))


def test_the_perplexity_of_a_run(run: str, tmp_path: Path) -> None:
    """The harness puts a <s> before a text, and this tokenizer another unless told not to."""
    rows = [{"text": text} for text in STORIES]
    write(tmp_path / "stories.jsonl", rows)
    harness = evaluate(
        PERPLEXITY, tmp_path / "stories.jsonl", f"pretrained={run},add_bos_token=False"
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    expected = [np.array([by_hand(model, tokenizer, "", text)]) for text in STORIES]
    agree(of_answers(harness, "perplexity"), expected)
    words = sum(len(text.split()) for text in STORIES)
    assert harness["results"]["perplexity"]["word_perplexity,none"] == pytest.approx(
        np.exp(-np.sum(expected) / words), rel=1e-4
    )
    agree([scanned(rows, run, tmp_path / "texts")], expected)


def test_an_adapter_is_scored_over_its_base(
    stories: str, choices: dict[str, Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    adapter = train(PAIRS, stories, tmp_path / "run", "--lora-r", "4")
    harness = evaluate(choices, tmp_path / "choices.jsonl", f"pretrained={stories},peft={adapter}")
    tokenizer = AutoTokenizer.from_pretrained(stories)
    base = AutoModelForCausalLM.from_pretrained(stories)
    before = all_by_hand(base, tokenizer)
    expected = all_by_hand(PeftModel.from_pretrained(base.float(), adapter), tokenizer)
    found = of_answers(harness)
    agree(found, expected)
    assert harness["results"]["choices"]["acc,none"] == accuracy(expected)
    assert max(abs(f - b).max() for f, b in zip(found, before, strict=True)) > 0.1
    differences_agree(found, scanned(ANSWERS, stories, tmp_path / "answers", adapter=adapter))


def test_the_template_of_a_run_is_applied(
    model_folder: str, choices: dict[str, Any], tmp_path: Path
) -> None:
    run = train([conversation(*pair) for pair in TRAINED], model_folder, tmp_path / "run")
    harness = evaluate(
        choices, tmp_path / "choices.jsonl", f"pretrained={run}", apply_chat_template=True
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    found, expected = of_answers(harness), all_by_hand(model, tokenizer, chat=True)
    agree(found, expected)
    assert harness["results"]["choices"]["acc,none"] == accuracy(expected)
    rows = [conversation(q, a) for q, answers, _ in ASKED for a in answers]
    differences_agree(found, scanned(rows, run, tmp_path / "answers"))
