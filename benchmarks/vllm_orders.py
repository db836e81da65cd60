"""How far vLLM and the local engine are apart, and either from itself in other batches.

python benchmarks/vllm_orders.py --data gsm8k/train.jsonl --model smollm2 --dtype bfloat16 \\
    --engine-arg gpu_memory_utilization=0.2

Absolute differences of the log-probability and the entropy of every trained token, in nats.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from contestants import Work, print_table
from numpy.typing import NDArray

from eaft_probe.columns.measure import TokenColumns, measure
from eaft_probe.columns.statistics import chosen_statistics
from eaft_probe.data.batches import TokenBatch, Window, batch_of
from eaft_probe.engines.vllm_loading import load_vllm
from eaft_probe.settings import ScanSettings

Measure = Callable[[TokenBatch], TokenColumns]
NAMES = ("logprob", "entropy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--engine-arg", action="append", default=[])
    args = parser.parse_args()
    given = {k: float(v) for k, v in (pair.split("=") for pair in args.engine_arg)}
    columns = chosen_statistics([], reference=False)
    served = load_vllm(args.model, statistics=columns, engine_arg=given, dtype=args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        settings = ScanSettings(model=args.model, limit=args.rows)
        work = Work.load(args.data, settings, Path(folder), args.dtype)
        windows = [w for unit in work.windows for w in unit]
        local = partial(measure, work.model, statistics=columns)
        vllm = {size: in_batches(served.measure, windows, size) for size in (len(windows), 1)}
        ours = {size: in_batches(local, windows, size) for size in (4, 1)}
    pairs = {
        "vLLM: all rows at once, one by one": (vllm[len(windows)], vllm[1]),
        "local: four rows at once, one by one": (ours[4], ours[1]),
        "vLLM all at once, local four at once": (vllm[len(windows)], ours[4]),
    }
    cells = [
        (pair, name, *(f"{f(np.abs(a[name] - b[name])):.2g}" for f in (np.mean, late, np.max)))
        for pair, (a, b) in pairs.items()
        for name in NAMES
    ]
    print(f"{args.rows} rows, {len(ours[1]['logprob']):,} trained tokens, {args.dtype}")
    print_table(("", "", "mean", "99 % below", "largest"), cells)


def in_batches(of: Measure, windows: Sequence[Window], size: int) -> dict[str, NDArray[np.float32]]:
    """The columns of all windows, in their order, read `size` at a time."""
    groups = [windows[i : i + size] for i in range(0, len(windows), size)]
    measured = [of(batch_of(group[0].ids[:0], group)) for group in groups]
    return {n: np.concatenate([m[n].float().numpy() for m in measured]) for n in NAMES}


def late(values: NDArray[np.float32]) -> float:
    return float(np.quantile(values, 0.99))


if __name__ == "__main__":
    main()
