"""`--turns each` against `--turns together` on conversations of eight turns, loading excluded.

python benchmarks/turns_each.py --data gsm8k/train.jsonl --model smollm2 --rows 12

A conversation is made of four questions and answers. Both score the same tokens.
"""

import argparse
import json
import tempfile
import time
from itertools import chain, islice
from pathlib import Path

from contestants import Work, print_table
from render_speed import chat

from eaft_probe.settings import ScanSettings

TURNS = ("together", "each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "eight.jsonl"
        data.write_text("".join(conversations(args.data, args.rows)))
        first = Work.load(data, ScanSettings(model=args.model), Path(folder))
        times: dict[str, list[float]] = {name: [] for name in TURNS}
        for _ in range(args.rounds):
            for name in TURNS:
                settings = ScanSettings(model=args.model, turns=name)
                times[name].append(seconds(Work(data, settings, first.model, Path(folder))))
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    rows = [(name, f"{min(mine):.2f}") for name, mine in times.items()]
    print_table(("", "min s"), rows)
    least = min(times["each"]) / min(times["together"])
    print(f"each / together {least:.3f} (pairs {min(ratios):.3f} to {max(ratios):.3f})")


def conversations(data: Path, rows: int) -> list[str]:
    with data.open() as file:
        pairs = [chat(json.loads(line)) for line in islice(file, 4 * rows)]
    fours = [pairs[i : i + 4] for i in range(0, len(pairs), 4)]
    return [json.dumps({"messages": [*chain(*four)]}) + "\n" for four in fours]


def seconds(work: Work) -> float:
    scorer = work.scorer(work.new_folder())
    began = time.perf_counter()
    for unit in work.units.units():
        scorer.score(unit, scorer.read(unit))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
