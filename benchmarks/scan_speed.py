"""How long a scan takes against the bare forward pass, the usual recipe and TRL's fused head.

Contestants alternate, so that a slow minute of the machine hits all of them. Loading the model is
not timed; rendering, tokenizing and writing are, but only for `scan`: the others get ready batches,
which the first, uncounted pair makes.
The ratio is of minima; its spread goes over the pairs, each contestant against the `bare` run
beside it.
"""

import argparse
import statistics
import sys
import time

import torch
from contestants import CONTESTANTS, Work, arguments, prepared, print_table

Times = dict[str, list[float]]  # seconds of every pair


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=[*CONTESTANTS])
    args = parser.parse_args()
    with prepared(args, args.rows) as work:
        times, means = measured(work, args)
        report(work, times, means)


def measured(work: Work, args: argparse.Namespace) -> tuple[Times, dict[str, float | None]]:
    """Seconds of every run, and each contestant's mean log-probability. Pair 0 does not count."""
    times: Times = {name: [] for name in args.contestants}
    means: dict[str, float | None] = {}
    for pair in range(args.pairs + 1):
        for name in args.contestants:
            seconds, means[name] = timed(name, work)
            print(f"{pair}/{args.pairs} {name} {seconds:.2f} s", file=sys.stderr)
            if pair > 0:
                times[name].append(seconds)
    return times, means


def timed(name: str, work: Work) -> tuple[float, float | None]:
    start = time.perf_counter()
    mean = CONTESTANTS[name](work)
    if work.model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, mean


def report(work: Work, times: Times, means: dict[str, float | None]) -> None:
    windows = sum(len(unit) for unit in work.windows)
    read = sum(len(w.ids) for unit in work.windows for w in unit)
    print(
        f"{work.data.name}, {work.settings.model} on {work.model.device}: {windows} windows, "
        f"{read:,} tokens, {work.trained_tokens:,} trained; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads\n"
    )
    head = ("", "min s", "median s", "trained tokens/s", "/ bare", "spread", "mean logprob")
    print_table(head, [row(name, times, means[name], work.trained_tokens) for name in times])


def row(name: str, times: Times, mean: float | None, tokens: int) -> tuple[str, ...]:
    mine, ratio, spread = times[name], "", ""
    if "bare" in times:
        pairs = [a / b for a, b in zip(mine, times["bare"], strict=True)]
        ratio = f"{min(mine) / min(times['bare']):.3f}"
        spread = f"{min(pairs):.3f}..{max(pairs):.3f}"
    seconds = (f"{min(mine):.2f}", f"{statistics.median(mine):.2f}")
    checked = "" if mean is None else f"{mean:.6f}"
    return (name, *seconds, f"{tokens / min(mine):,.0f}", ratio, spread, checked)


if __name__ == "__main__":
    main()
