"""Two workers with one thread each against one process with two threads, whole commands in turn.

python benchmarks/scan_workers.py --data gsm8k/test.jsonl --model smollm2 --rows 64
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contestants import print_table

CONTESTANTS = {
    "1 process, 2 threads": ("--threads", "2"),
    "2 workers, 1 thread each": ("--workers", "2", "--threads", "1"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rows-per-unit", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for pair in range(args.pairs):
        for name, flags in CONTESTANTS.items():
            times[name].append(seconds(args, flags))
            print(f"{pair + 1}/{args.pairs} {name} {times[name][-1]:.2f} s", file=sys.stderr)
    report(times)


def seconds(args: argparse.Namespace, flags: tuple[str, ...]) -> float:
    """Of a whole scan: starting, loading, scoring, writing and flagging."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "eaft_probe",
            "scan",
            args.data,
            "--model",
            args.model,
            "--limit",
            str(args.rows),
            "--rows-per-unit",
            str(args.rows_per_unit),
            "--out",
            str(Path(folder) / "scan"),
            *flags,
        ]
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - began


def report(times: dict[str, list[float]]) -> None:
    """The speed of each, as a multiple of the first; its spread goes over the pairs."""
    first = next(iter(times.values()))
    rows = []
    for name, mine in times.items():
        pairs = [a / b for a, b in zip(first, mine, strict=True)]
        spread = f"{min(pairs):.3f} to {max(pairs):.3f}"
        least, median = f"{min(mine):.2f}", f"{statistics.median(mine):.2f}"
        rows.append((name, least, median, f"{min(first) / min(mine):.3f}", spread))
    print_table(("", "min s", "median s", "speed", "spread"), rows)


if __name__ == "__main__":
    main()
