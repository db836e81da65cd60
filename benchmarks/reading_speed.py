"""Reading a file and inferring its format against `datasets.load_dataset`, in time and memory.

python benchmarks/reading_speed.py --data gsm8k/train.jsonl

Writes the rows of `--data` again and again, as JSON lines, CSV and Parquet. Contestants alternate,
each time in a fresh process, imports and the first use, of a few rows, excluded:

load_dataset           the file into an empty cache
load_dataset and rows  then every row as a dictionary
plan                   ours: the format inferred, rows counted, cut into units, fingerprinted
rows                   ours: the format inferred, then every row as a dictionary
examples               ours: the format inferred, then every row as messages, as a scan reads it

Times are the least ones, of the clock and of the CPU; the second is less disturbed by other work,
but does not see what a second thread or waiting for the disk changes. `speed` is over that of the
two forms of `load_dataset`, by the clock and by the CPU. `MB` is the highest resident set less that
before the work, with all rows and with a tenth; that of `load_dataset` has pages of its cache, a
mapped file, in it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

KINDS = {".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}  # file type → load_dataset's name
BLOCK = 10_000  # rows that are written at once
FEW = 200  # rows of the first use


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines of question, answer")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--folder", help="where the rows go; the system's temporary folder")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)  # contestant and files, here
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(args.child[0], *map(Path, args.child[1:]))))
        return
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)
    head = ("", "", "s", "CPU s", "speed / load_dataset", "/ and rows", "MB", "MB of a tenth")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for kind in args.kinds:
            for cells in compared(args, kind, Path(folder)):
                print(f"| {' | '.join(cells)} |", flush=True)
    print(f"load {os.getloadavg()[0]:.1f}")


def compared(args: argparse.Namespace, kind: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """A line of the table for each contestant."""
    whole, tenth, few = (folder / f"{name}{kind}" for name in ("whole", "tenth", "few"))
    for path, rows in ((whole, args.rows), (tenth, args.rows // 10), (few, FEW)):
        writing = get_context("spawn").Process(target=write, args=(args.data, path, rows))
        writing.start()  # its memory would pass for that of the contestants, which begin here
        writing.join()
    facts = defaultdict[str, list[dict[str, Any]]](list)
    for _ in range(args.rounds):
        for name in args.contestants:
            facts[name].append(in_fresh_process(name, whole, few))
            assert facts[name][-1]["rows"] == args.rows, facts
    least = {
        name: [min(fact[clock] for fact in mine) for clock in ("seconds", "cpu")]
        for name, mine in facts.items()
    }
    for name in args.contestants:
        others = (least.get(other) for other in ("load_dataset", "load_dataset and rows"))
        speeds = (speed(other, least[name]) if other else "" for other in others)
        peaks = (
            max(fact["bytes"] for fact in facts[name]),
            in_fresh_process(name, tenth, few)["bytes"],
        )
        seconds = (f"{t:.2f}" for t in least[name])
        yield kind, name, *seconds, *speeds, *(f"{peak / 1e6:,.0f}" for peak in peaks)
    whole.unlink()


def speed(other: list[float], mine: list[float]) -> str:
    return ", ".join(f"{theirs / ours:.2f}" for theirs, ours in zip(other, mine, strict=True))


def write(data: Path, path: Path, rows: int) -> None:
    """`rows` rows, those of `data` again and again."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    with data.open() as file:
        texts = cycle([json.loads(line) for line in file])
    blocks = (list(islice(texts, min(BLOCK, rows - at))) for at in range(0, rows, BLOCK))
    if path.suffix == ".jsonl":
        with path.open("w") as file:
            for block in blocks:
                file.writelines(json.dumps(row) + "\n" for row in block)
        return
    writer = {".csv": csv.CSVWriter, ".parquet": parquet.ParquetWriter}[path.suffix]
    schema = pa.schema({"question": pa.string(), "answer": pa.string()})
    with writer(path, schema) as out:
        for block in blocks:
            out.write_table(pa.Table.from_pylist(block, schema))


# --- the contestants ---


def load(data: Path) -> Any:
    import datasets

    datasets.disable_progress_bars()
    cache = os.environ["HF_HOME"]
    return datasets.load_dataset(
        KINDS[data.suffix], data_files=str(data), split="train", cache_dir=cache
    )


def load_and_rows(data: Path) -> int:
    return sum(1 for row in load(data))


def plan(data: Path) -> int:
    from eaft_probe.data.opening import data_format, open_data, selection
    from eaft_probe.data.units import UnitPlan
    from eaft_probe.settings import ScanSettings

    source = open_data(str(data), ScanSettings())
    data_format(source, ScanSettings())
    source.fingerprint()
    return UnitPlan.of(source, selection(ScanSettings()), 256).rows


def rows(data: Path) -> int:
    from eaft_probe.data.opening import data_format, open_data
    from eaft_probe.settings import ScanSettings

    source = open_data(str(data), ScanSettings())
    data_format(source, ScanSettings())
    return sum(1 for record in source.records() if record.parse())


def examples(data: Path) -> int:
    from eaft_probe.data.opening import data_format, open_data
    from eaft_probe.data.reading import Reader
    from eaft_probe.settings import ScanSettings

    source = open_data(str(data), ScanSettings())
    read = Reader(data_format(source, ScanSettings()), lambda example: example, strict=True)
    return sum(1 for record in source.records() if read(record))


CONTESTANTS = {
    "load_dataset": lambda data: len(load(data)),
    "load_dataset and rows": load_and_rows,
    "plan": plan,
    "rows": rows,
    "examples": examples,
}


def in_fresh_process(name: str, data: Path, few: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--data", "-", "--child", name, str(data), str(few)]
    with tempfile.TemporaryDirectory(dir=data.parent) as cache:
        environment = os.environ | {"HF_HOME": cache, "HF_HUB_OFFLINE": "1"}
        finished = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=environment
        )
    return json.loads(finished.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measured(name: str, data: Path, few: Path) -> dict[str, Any]:
    CONTESTANTS[name](few)
    before, began, cpu = peak_bytes(), time.perf_counter(), time.process_time()
    count = CONTESTANTS[name](data)
    return {
        "rows": count,
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "bytes": peak_bytes() - before,
    }


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    main()
