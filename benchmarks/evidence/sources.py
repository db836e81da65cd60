"""Rows of the public data sets, as conversations of one question and one answer."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path

from evidence.bench import Row

EXPLAINED = range(150, 900)  # characters of an explanation: neither a remark nor a chapter


def _row(key: str, question: str, answer: str) -> Row:
    turns = [("user", question), ("assistant", answer)]
    return {"key": key, "messages": [{"role": r, "content": c} for r, c in turns]}


def _lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def gsm8k(data: Path) -> list[Row]:
    """Grade-school mathematics, training set: worked answers by people."""
    rows = _lines(data / "gsm8k" / "train.jsonl")
    return [_row(f"gsm8k-{i}", r["question"], r["answer"]) for i, r in enumerate(rows)]


def medmcqa(data: Path) -> list[Row]:
    """Medical entrance examinations: explanations out of textbooks."""
    rows = [r for r in _lines(data / "medmcqa" / "dev.json") if len(r["exp"] or "") in EXPLAINED]
    return [_row(r["id"], _choices(r), r["exp"]) for r in rows]


def _choices(row: Row) -> str:
    options = "\n".join(f"{n.upper()}. {row[f'op{n}']}" for n in "abcd")
    return f"{row['question']}\n{options}\nWhich is right? Explain."


def fireact(data: Path) -> list[Row]:
    """ReAct trajectories by GPT-4 on HotpotQA: the first thought and action."""
    rows = [r["messages"][:2] for r in _lines(data / "fireact" / "gpt_hotpotqa.jsonl")]
    return [_row(f"fireact-{i}", q["content"], a["content"]) for i, (q, a) in enumerate(rows)]


ANSWERED: dict[str, Callable[[Path], list[Row]]] = {
    "gsm8k": gsm8k,
    "medmcqa": medmcqa,
    "fireact": fireact,
}


def drawn(rows: list[Row], count: int) -> list[Row]:
    """The first `count` of one fixed shuffle, so that a larger draw begins with the smaller."""
    rows = list(rows)
    random.Random(0).shuffle(rows)
    if len(rows) < count:
        raise SystemExit(f"{count} rows are wanted, the data has {len(rows)}")
    return rows[:count]


def retained(data: Path) -> list[Row]:
    """What must not be forgotten: WikiText-2, MMLU with its answers, IFEval's prompts."""
    wiki = (data / "text" / "wikitext2_test.txt").read_text().split("\n")
    texts = [p.strip() for p in wiki if len(p) > 400]
    texts += [_lettered(r) for f in sorted((data / "mmlu" / "dev").glob("*.csv")) for r in _csv(f)]
    texts += [r["prompt"] for r in _lines(data / "ifeval" / "input_data.jsonl")]
    return [{"text": text} for text in texts]


def _csv(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def _lettered(row: list[str]) -> str:
    question, *options, right = row
    shown = "\n".join(f"{n}. {o}" for n, o in zip("ABCD", options, strict=True))
    return f"{question}\n{shown}\nAnswer: {right}"
