"""How long planning many rows takes, in how much memory: fingerprint, rows and units, no tokens.

Writes JSON lines of some 60 bytes into a temporary folder, one row in a thousand malformed, some
lines blank. Every line of the table is a fresh process, `peak` its highest resident set and
`before` that of the process before it begins; `--sample` draws rows, which are held.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = (0.01, 0.1, 1)  # of --rows: memory should not grow with them
SAMPLE = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", help="where the rows go; the system's temporary folder")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # file and sample, here
    args = parser.parse_args()
    if args.child:
        print(json.dumps(planned(Path(args.child[0]), int(args.child[1]))))
        return
    print("| rows | MB | sample | s | before MB | peak MB | units |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        data = Path(folder) / "rows.jsonl"
        for size in SIZES:
            write(data, int(args.rows * size))
            for sample in (0, SAMPLE) if size == SIZES[-1] else (0,):
                print(line(data, sample), flush=True)


def write(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for first in range(0, rows, 1000):
            lines = [
                f'{{"question": "what is {n}?", "answer": "it is {n}"}}\n'
                for n in range(first, min(first + 999, rows))
            ]
            file.write("".join(lines) + ("{malformed\n\n" if first + 999 < rows else ""))


def line(data: Path, sample: int) -> str:
    command = [sys.executable, __file__, "--child", str(data), str(sample)]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    facts = json.loads(found.stdout)
    peaks = (f"{facts[k] / 1e6:,.0f}" for k in ("before", "peak"))
    cells = (
        f"{facts['rows']:,}",
        f"{data.stat().st_size / 1e6:,.0f}",
        f"{sample or ''}",
        f"{facts['seconds']:.1f}",
        *peaks,
        f"{facts['units']:,}",
    )
    return f"| {' | '.join(cells)} |"


def planned(data: Path, sample: int) -> dict[str, Any]:
    from eaft_probe.data.sources import open_source
    from eaft_probe.data.units import Selection, UnitPlan

    before, start = peak_bytes(), time.perf_counter()
    source = open_source(data)
    units = UnitPlan.of(source, Selection(sample=sample or None), 256)
    source.fingerprint()
    return {
        "seconds": time.perf_counter() - start,
        "before": before,
        "peak": peak_bytes(),
        "rows": units.rows,
        "units": units.count,
    }


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    main()
