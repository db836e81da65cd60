"""What a scan with --keep-tokens keeps of ever more data: sizes, time and memory, by simulation.

Units of tokens are drawn at random, with entropies and probabilities over the whole plane and
labels by Zipf's law, so that cells and pairs fill faster than a model would fill them. They go
through what a scan does with them: totals of the unit, tokens to keep, units joined. `s / million`
is what that adds to a scan, `totals` the size of its file, `kept` that of tokens/ without texts,
`units` the totals of the units, which wait for the scan's end, `all` what tokens/ would take with
every token, by its size for the first unit.

    python benchmarks/keep_tokens.py
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from contestants import print_table

from eaft_probe.analysis.partial_aggregates import added, sums_of, unit_totals
from eaft_probe.analysis.token_filter import kept_tokens
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.statistics import chosen_statistics
from eaft_probe.scans.part_writer import write_parquet
from eaft_probe.scans.schemas import tokens_schema

VOCAB, LENGTH = 50_000, 500  # tokens of an example
SCHEMA = tokens_schema(chosen_statistics([], False))
HEAD = (
    "tokens",
    "s / million",
    "peak MB",
    "cells",
    "pairs",
    "totals MB",
    "kept MB",
    "units MB",
    "all MB",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=250_000, help="of a unit: 1 MB of text")
    parser.add_argument("--share", type=float, default=0.001, help="the F of sample:F")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print_table(HEAD, list(rows(args, Path(folder))))


def rows(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, ...]]:
    """One for each power of four of units."""
    rule, whole, kept = ConflictRule(), None, list[pa.Table]()
    seconds, every, waiting = 0.0, 0, 0
    for number in range(args.units):
        tokens, examples = unit(number, args.tokens)
        every = every or size(folder, tokens)
        start = time.perf_counter()
        made = unit_totals(tokens, examples, [], rule, set())
        whole = made if whole is None else added([whole, made])
        kept.append(kept_tokens(tokens, examples, rule, args.share)[0])
        seconds += time.perf_counter() - start
        waiting += size(folder, made)
        done = number + 1
        if done & (done - 1) == 0 and done.bit_length() % 2:
            together = pa.concat_tables(kept).unify_dictionaries()
            sizes = [size(folder, whole), size(folder, together), waiting, every * done]
            sums, million = sums_of(whole), args.tokens * done / 1e6
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            yield (
                f"{million:,.2f} M",
                f"{seconds / million:.2f}",
                f"{peak:,.0f}",
                f"{len(sums['cell'][0]):,}",
                f"{len(sums['pair'][0]):,}",
                *(f"{s / 1e6:,.2f}" for s in sizes),
            )


def size(folder: Path, table: pa.Table) -> int:
    write_parquet(folder / "table.parquet", table)
    return (folder / "table.parquet").stat().st_size


def unit(number: int, count: int) -> tuple[pa.Table, pa.Table]:
    """Tokens of one unit and their examples, without texts."""
    random, at = np.random.default_rng(number), np.arange(count)
    columns: dict[str, Any] = {f.name: np.zeros(count) for f in SCHEMA}
    entropy = random.beta(0.6, 2, count) * 10.8
    prob = np.exp(-random.exponential(1 + entropy))
    ids = np.minimum(random.zipf(1.2, (2, count)), VOCAB) - 1
    columns |= {
        "example": number * count // LENGTH + at // LENGTH,
        "position": at % LENGTH + 20,
        "turn": np.ones(count),
        "token_id": ids[0],
        "top1_id": ids[1],
        "prob": prob,
        "entropy": entropy,
        "entropy_top20": entropy * 0.8,
        "logprob": np.log(prob),
        "rank": np.where(prob > 0.5, 0, 5),
        "concentration": random.random(count),
        "top1_prob": random.random(count),
        "grad_logits": random.random(count),
        "grad_head": random.random(count) * 20,
    }
    texts = {"token": texts_of(ids[0]), "top1": texts_of(ids[1])}
    made = texts | {
        f.name: pa.array(columns[f.name].astype(kind(f)), f.type)
        for f in SCHEMA
        if f.name not in texts
    }
    said = json.dumps([{"role": "user"}, {"role": "assistant"}])
    found = np.unique(columns["example"])
    examples = pa.table({"example": found, "messages": [said] * len(found)})
    return pa.Table.from_arrays([made[n] for n in SCHEMA.names], schema=SCHEMA), examples


def kind(field: pa.Field) -> Any:
    return field.type.to_pandas_dtype()


def texts_of(ids: Any) -> pa.DictionaryArray:
    known, codes = np.unique(ids, return_inverse=True)
    return pa.DictionaryArray.from_arrays(
        pa.array(codes.astype(np.int32)), pa.array([f" w{i}" for i in known])
    )


if __name__ == "__main__":
    main()
