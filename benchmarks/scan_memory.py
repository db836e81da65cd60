"""Peak memory of a scan against the bare forward pass and over the rows; bytes of its parts.

Every line is a fresh process. `loaded` is the highest resident set (`ru_maxrss`) until the model
stands, `peak` until the work is done. Bytes are those of the parquet files in `tokens/`, a trained
token.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from contestants import CONTESTANTS, Work, arguments, prepared, print_table

# (contestant, rows): scan against bare on the same rows, then scan over ten times the rows.
CASES = (("bare", 200), ("scan", 200), ("scan", 100), ("scan", 1000))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--child", help=argparse.SUPPRESS)  # CONTESTANT:ROWS, in this process
    parser.add_argument("--cases", nargs="+", default=[f"{n}:{r}" for n, r in CASES])
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(args, args.child)))
        return
    rows = [row(case, in_fresh_process(case)) for case in args.cases]
    print_table(("", "rows", "loaded MB", "peak MB", "trained tokens", "bytes/token"), rows)


def in_fresh_process(case: str) -> dict[str, Any]:
    command = [sys.executable, *sys.argv, "--child", case]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measured(args: argparse.Namespace, case: str) -> dict[str, Any]:
    """Runs one contestant here. A process's peak never falls, so it can be measured only once."""
    name, rows = case.split(":")
    with prepared(args, int(rows)) as work:
        loaded = peak_bytes()
        CONTESTANTS[name](work)
        facts = {"loaded": loaded, "peak": peak_bytes()}
        return facts | (parts(work) if name == "scan" else {})


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def parts(work: Work) -> dict[str, int]:
    """Bytes in tokens/ of the only scan in the work's folder, and its rows."""
    import pyarrow.parquet as pq

    files: list[Path] = list(work.folder.glob("*/tokens/*.parquet"))
    return {
        "bytes": sum(f.stat().st_size for f in files),
        "tokens": sum(pq.ParquetFile(f).metadata.num_rows for f in files),
    }


def row(case: str, facts: dict[str, Any]) -> tuple[str, ...]:
    name, rows = case.split(":")
    megabytes = (f"{facts[k] / 1e6:,.0f}" for k in ("loaded", "peak"))
    disk = ("", "")
    if "tokens" in facts:
        disk = (f"{facts['tokens']:,}", f"{facts['bytes'] / facts['tokens']:.1f}")
    return (name, rows, *megabytes, *disk)


if __name__ == "__main__":
    main()
