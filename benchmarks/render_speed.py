"""Rendering against a plain loop of `apply_chat_template`, and rendering beside the forward pass.

python benchmarks/render_speed.py --data gsm8k/train.jsonl --model smollm2 --rows 600
python benchmarks/render_speed.py --data gsm8k/train.jsonl --model stories260K --beside

The first form gives rows/s, ours over the loop's, of question and answer and of conversations of
eight turns made of four of them; every row has tokens and characters of what is trained besides.
The second scores the same units twice, reading each before it is scored and reading it beside the
one before; it gives the wall times and what reading alone takes.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from contestants import Work, print_table

from eaft_probe.data.formats import Example
from eaft_probe.data.messages import Message
from eaft_probe.data.rendering.render import Renderer
from eaft_probe.engines.ahead import AHEAD, ReadAhead
from eaft_probe.model.loading import load_tokenizer
from eaft_probe.settings import ScanSettings

Chat = list[dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--chat-template")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--beside", action="store_true")
    args = parser.parse_args()
    if args.beside:
        beside(args)
    else:
        against_loop(args)


def against_loop(args: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(args.model)
    if args.chat_template:
        tokenizer.chat_template = Path(args.chat_template).read_text()
    with args.data.open() as file:
        rows = [json.loads(line) for line in islice(file, args.rows)]
    pairs = [chat(row) for row in rows]
    eights = [sum(pairs[i : i + 4], start=Chat()) for i in range(0, len(pairs) - 3, 4)]
    table = []
    for name, chats in (("question and answer", pairs), ("eight turns", eights)):
        renderer = Renderer(tokenizer)
        examples = [example(c) for c in chats]
        loops, ours = [], []
        for _ in range(args.rounds):
            loops.append(seconds(lambda c: tokenizer.apply_chat_template(c, tokenize=True), chats))
            ours.append(seconds(renderer.renderings, examples))
        ratios = [a / b for a, b in zip(loops, ours, strict=True)]
        table.append(
            (
                name,
                f"{len(chats) / min(loops):,.0f}",
                f"{len(chats) / min(ours):,.0f}",
                f"{min(loops) / min(ours):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
            )
        )
    print_table(("", "loop rows/s", "ours rows/s", "ours / loop", "spread"), table)


def chat(row: dict[str, Any]) -> Chat:
    return [
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": row["answer"]},
    ]


def example(messages: Chat) -> Example:
    return Example("", tuple(Message(m["role"], m["content"]) for m in messages))


def seconds(work: Callable[[Any], Any], items: Iterable[Any]) -> float:
    began = time.perf_counter()
    for item in items:
        work(item)
    return time.perf_counter() - began


def beside(args: argparse.Namespace) -> None:
    settings = ScanSettings(model=args.model, limit=args.rows)
    with tempfile.TemporaryDirectory() as folder:
        work = Work.load(args.data, settings, Path(folder))
        times: dict[str, list[float]] = {"one after the other": [], "beside": [], "reading": []}
        for number in range(args.rounds):
            for name, mine in times.items():
                scorer = work.scorer(Path(folder) / f"{name}{number}")
                began = time.perf_counter()
                RUNS[name](scorer, work)
                mine.append(time.perf_counter() - began)
    least = {name: min(mine) for name, mine in times.items()}
    first = least["one after the other"]
    table = [(name, f"{t:.2f}", f"{first / t:.2f}") for name, t in least.items()]
    print_table(("", "min s", "speed"), table)


def one_after_the_other(scorer: Any, work: Work) -> None:
    for unit in work.units.units():
        scorer.score(unit, scorer.read(unit))


def side_by_side(scorer: Any, work: Work) -> None:
    ahead = ReadAhead(scorer.read)
    for unit in work.units.units():
        ahead.put(unit)
        if len(ahead) > AHEAD:
            scorer.score(*ahead.pop())
    while ahead:
        scorer.score(*ahead.pop())
    ahead.close()


def reading(scorer: Any, work: Work) -> None:
    for unit in work.units.units():
        scorer.read(unit)


RUNS = {"one after the other": one_after_the_other, "beside": side_by_side, "reading": reading}

if __name__ == "__main__":
    main()
