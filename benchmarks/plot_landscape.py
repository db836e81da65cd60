"""`plot landscape` of a synthetic scan against plain pandas and hexbin: seconds and peak memory.

Every run is a fresh process, timed from its start to its end; imports and the picture's file count.
`hexbin` is `pandas.read_parquet` of the same two columns of the same files and `matplotlib.hexbin`
with logarithmic colours. They alternate. Memory is the highest resident set (`ru_maxrss`) of any
run.
The files have just been written: the disk is hardly read.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

# numpy, pandas, torch and the package are imported where they are used: a process's `ru_maxrss`
# begins with that of the process which started it, so the one that measures stays small.

VOCAB = 49_152
EXAMPLE = 250  # tokens; a unit of 256 rows has 64,000
CHUNK = 250_000  # tokens drawn at once
WORDS = [f" word{i}" for i in range(4096)]


class Usage(NamedTuple):
    seconds: float
    bytes: int  # peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=50_000_000)
    parser.add_argument("--parts", type=int, default=200, help="files that the tokens lie in")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        CHILDREN[args.child](args)
        return
    with tempfile.TemporaryDirectory() as name:
        args.folder = Path(name) / "scan"
        used = used_by(child("make", args))
        print(f"scan made in {used.seconds:.0f} s", file=sys.stderr)
        report(args, measured(args))


# --- measuring ---


def measured(args: argparse.Namespace) -> dict[str, list[Usage]]:
    """What every run took, by contestant. Round 0 does not count: it reads libraries from disk."""
    out = args.folder.parent / "landscape.png"
    plot = [sys.executable, "-m", "eaft_probe", "plot", "landscape", args.folder, "--out", out]
    runs: dict[str, list[Usage]] = {"landscape": [], "hexbin": []}
    for number in range(args.rounds + 1):
        for name, command in (("landscape", plot), ("hexbin", child("hexbin", args))):
            used = used_by(command)
            print(f"{number}/{args.rounds} {name} {used.seconds:.2f} s", file=sys.stderr)
            if number > 0:
                runs[name].append(used)
    return runs


def child(name: str, args: argparse.Namespace) -> list[str | Path]:
    sizes = ["--tokens", str(args.tokens), "--parts", str(args.parts)]
    return [sys.executable, __file__, "--child", name, "--folder", args.folder, *sizes]


def used_by(command: list[str | Path]) -> Usage:
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return Usage(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def report(args: argparse.Namespace, runs: dict[str, list[Usage]]) -> None:
    from contestants import print_table

    from eaft_probe import Scan
    from eaft_probe.analysis.histogram2d import histogram

    scan = Scan.open(args.folder)
    drawn = int(histogram(scan).counts.sum())
    assert drawn == args.tokens, f"{drawn:,} tokens drawn"
    size = sum(f.stat().st_size for f in scan.part_files("tokens"))
    print(
        f"{args.tokens:,} tokens in {args.parts} parts, {size / 1e6:,.0f} MB; "
        f"{os.cpu_count()} CPU cores, {args.rounds} rounds\n"
    )
    head = ("", "min s", "max s", "/ hexbin", "spread", "peak MB")
    print_table(head, [row(name, used, runs["hexbin"]) for name, used in runs.items()])


def row(name: str, used: list[Usage], beside: list[Usage]) -> tuple[str, ...]:
    """The ratio is of minima; its spread goes over the rounds."""
    seconds = [u.seconds for u in used]
    ratios = [u.seconds / b.seconds for u, b in zip(used, beside, strict=True)]
    ratio = f"{min(seconds) / min(b.seconds for b in beside):.3f}"
    spread = f"{min(ratios):.3f}..{max(ratios):.3f}"
    peak = f"{max(u.bytes for u in used) / 1e6:,.0f}"
    return (name, f"{min(seconds):.2f}", f"{max(seconds):.2f}", ratio, spread, peak)


def hexbin(args: argparse.Namespace) -> None:
    """What one would write without the package."""
    import matplotlib

    matplotlib.use("Agg")
    import pandas
    from matplotlib import pyplot

    frame = pandas.read_parquet(args.folder / "tokens", columns=["prob", "entropy"])
    drawn = pyplot.hexbin(frame["prob"], frame["entropy"], bins="log", mincnt=1)
    pyplot.colorbar(drawn)
    pyplot.savefig(args.folder.parent / "hexbin.png")


# --- the synthetic scan ---


MODEL = {
    "name": "synthetic",
    "adapter": None,
    "revision": None,
    "dtype": "float32",
    "max_length": 1024,
    "identity": "synthetic",
    "adapter_identity": None,
}


def make(args: argparse.Namespace) -> None:
    """A finished scan, the same on every call, with every column that a scan writes by default."""
    import numpy as np

    from eaft_probe.columns.conflicts import ConflictRule
    from eaft_probe.columns.statistics import chosen_statistics
    from eaft_probe.scans.manifest import write_manifest
    from eaft_probe.scans.part_writer import part_facts, write_part
    from eaft_probe.scans.scan import Scan
    from eaft_probe.scans.schemas import tokens_schema
    from eaft_probe.settings import ScanSettings
    from eaft_probe.storage.folder import Folder

    for kind in ("tokens", "examples"):
        (args.folder / kind).mkdir(parents=True)
    schema = tokens_schema(chosen_statistics([], False))
    examples = -(-args.tokens // EXAMPLE)
    edges = EXAMPLE * np.linspace(0, examples, args.parts + 1).astype(int)
    parts = []
    for index, (first, end) in enumerate(pairwise(edges.clip(max=args.tokens).tolist())):
        tables = tokens_table(index, first, end, schema), examples_table(first, end)
        counts = {"trained_tokens": end - first}
        write_part(Folder(args.folder), index, *tables, {"counts": counts, "rejected": []})
        parts.append(part_facts(args.folder, index, end - first))
    counts = {"rows": examples, "examples": examples, "rejected": 0, "cut_examples": 0}
    manifest = {
        "command": "scan",
        "config": asdict(ScanSettings()),
        "model": {**MODEL, "vocab_size": VOCAB},
        "data": {"source": "synthetic", "fingerprint": "synthetic", "format": "messages"},
        "chat_template": None,
        "columns": schema.names,
        "parts": parts,
        "counts": {**counts, "tokens": args.tokens, "trained_tokens": args.tokens},
        "special_tokens": [],
    }
    write_manifest(Folder(args.folder), manifest)
    Scan.open(args.folder).flag(ConflictRule())


def tokens_table(part: int, first: int, end: int, schema: Any) -> Any:
    """The tokens from `first` to `end`, 250 an example."""
    import numpy as np
    import pyarrow as pa

    draw = np.random.default_rng([0, part])
    chunks = []
    for start in range(first, end, CHUNK):
        token = np.arange(start, min(start + CHUNK, end))
        position, ids, top1_ids = token % EXAMPLE, *draw.integers(len(WORDS), size=(2, len(token)))
        columns = distributions(draw, len(token)) | {
            "example": token // EXAMPLE,
            "turn": np.ones(len(token)),
            "position": position + 20,
            "token_id": ids,
            "char_start": 5 * position,
            "char_end": 5 * position + 5,
        }
        columns["top1_id"] = np.where(columns["rank"] == 0, ids, top1_ids)
        for name, codes in (("token", ids), ("top1", columns["top1_id"])):
            columns[name] = pa.DictionaryArray.from_arrays(codes.astype(np.int32), WORDS)
        arrays = [
            c
            if isinstance(c := columns[f.name], pa.Array)
            else pa.array(c.astype(f.type.to_pandas_dtype()))
            for f in schema
        ]
        chunks.append(pa.Table.from_arrays(arrays, schema=schema))
    return pa.concat_tables(chunks) if chunks else schema.empty_table()


def distributions(draw: Any, n: int) -> dict[str, Any]:
    """Columns of n tokens, exact for a made-up distribution, so that they obey every bound.

    The label has probability p; the model's favourite has t, and is the label for half of the
    tokens; what is left lies evenly on m others, none of them likelier than the favourite.
    """
    import numpy as np

    agrees = draw.random(n) < 0.5
    t = 1 / (1 + np.exp(-draw.normal(np.where(agrees, 1.3, -0.7), 1.6).clip(-4, 9)))
    p = np.where(agrees, t, np.minimum(t, 1 - t) * 10 ** -draw.exponential(1.2, n))
    rest = np.where(agrees, 1 - t, 1 - t - p)
    m = np.ceil(np.maximum(rest / t, np.exp(draw.normal(3, 2, n)))).clip(1, VOCAB - 2)
    q = rest / m  # of each of the others
    masses = np.stack([t, np.where(agrees, 0, p), q])
    others_squared = (masses**2 * np.stack([~agrees, np.zeros(n), m])).sum(0)
    beyond = ~agrees & (p > q)  # the label comes second, before the others
    grad_logits = np.sqrt((1 - p) ** 2 + others_squared)
    return {
        "logprob": np.log(p),
        "prob": p,
        "entropy": entropy(masses, np.stack([np.ones(n), ~agrees, m])),
        "entropy_top20": entropy(
            masses, np.stack([np.ones(n), beyond, np.minimum(m, 19 - beyond)])
        ),
        "concentration": others_squared + p**2,
        "rank": np.where(agrees, 0, np.where(beyond, 1, m + 1)),
        "top1_prob": t,
        "grad_logits": grad_logits,
        "grad_head": grad_logits * draw.normal(30, 3, n),
    }


def entropy(masses: Any, times: Any) -> Any:
    """−Σ P ln P of the masses, each as many times, renormalised."""
    import numpy as np

    share = masses / (masses * times).sum(0)
    return -(times * share * np.log(np.maximum(share, 1e-30))).sum(0)


def examples_table(first: int, end: int) -> Any:
    """The examples that those tokens belong to, one text for all."""
    import numpy as np
    import pyarrow as pa

    from eaft_probe.scans.schemas import examples_schema

    example = np.arange(first // EXAMPLE, -(-end // EXAMPLE))
    n = len(example)
    columns = [
        example,
        [None] * n,
        example.astype(str).tolist(),
        ["word " * EXAMPLE] * n,
        ["[]"] * n,
        [EXAMPLE] * n,
        [EXAMPLE] * n,
        [0.0] * n,
        [0.0] * n,
    ]
    schema = examples_schema([])
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema)


CHILDREN: dict[str, Callable[[argparse.Namespace], None]] = {"make": make, "hexbin": hexbin}

if __name__ == "__main__":
    main()
