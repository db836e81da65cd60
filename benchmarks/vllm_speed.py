"""Statistics inside vLLM against its plain `prompt_logprobs`, and against the local engine.

python benchmarks/vllm_speed.py --data gsm8k/train.jsonl --model smollm2 --rows 16 \\
    --engine-arg gpu_memory_utilization=0.3

One vLLM serves both forms in turn, so that a slow minute hits both; the local engine runs beside
them over the same rows. Loading, rendering and writing are not timed. With the engine in this
process, its CPU time is vLLM's too, and differs less on a machine that does other work.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from contestants import Work, print_table

from eaft_probe.columns.measure import measure
from eaft_probe.columns.statistics import chosen_statistics
from eaft_probe.data.batches import batch_of
from eaft_probe.engines.vllm_loading import load_vllm
from eaft_probe.engines.vllm_model import VllmModel
from eaft_probe.settings import ScanSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--engine-arg", action="append", default=[])
    args = parser.parse_args()
    given = dict(pair.split("=") for pair in args.engine_arg)
    columns = chosen_statistics([], reference=False)
    served = load_vllm(
        args.model,
        statistics=columns,
        engine_arg={k: float(v) if "." in v else int(v) for k, v in given.items()},
        dtype=args.dtype,
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = ScanSettings(model=args.model, limit=args.rows)
        work = Work.load(args.data, settings, Path(folder), args.dtype)
        windows = [w for unit in work.windows for w in unit]
        whole = batch_of(windows[0].ids[:0], windows)
        forms: dict[str, Callable[[], object]] = {
            "vLLM, prompt_logprobs=0": partial(plain, served, [w.ids.tolist() for w in windows]),
            "vLLM with all columns": lambda: served.measure(whole),
            "local": lambda: [measure(work.model, batch, columns) for batch in work.batches],
        }
        times = {name: list[float]() for name in forms}
        busy = {name: list[float]() for name in forms}
        for number in range(args.rounds + 1):
            for name, form in forms.items():
                began, used = time.perf_counter(), time.process_time()
                form()
                if number:  # the first does not count
                    times[name].append(time.perf_counter() - began)
                    busy[name].append(time.process_time() - used)
    plain_name, *_ = forms
    tokens, first, least = sum(len(w.ids) for w in windows), times[plain_name], busy[plain_name]
    print(f"{args.rows} rows, {tokens:,} tokens, {work.trained_tokens:,} of them trained")
    print_table(
        ("", "min s", "median s", "tokens/s", "speed / plain", "CPU s", "CPU speed / plain"),
        [
            (
                name,
                f"{min(t):.2f}",
                f"{statistics.median(t):.2f}",
                f"{tokens / min(t):,.0f}",
                f"{min(first) / min(t):.3f}",
                f"{min(busy[name]):.2f}",
                f"{min(least) / min(busy[name]):.3f}",
            )
            for name, t in times.items()
        ],
    )


def plain(served: VllmModel, prompts: list[list[int]]) -> None:
    """What vLLM gives by itself: the label's log-probability and rank."""
    from vllm import SamplingParams

    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, flat_logprobs=True)
    served.llm.generate([{"prompt_token_ids": ids} for ids in prompts], asked, use_tqdm=False)


if __name__ == "__main__":
    main()
