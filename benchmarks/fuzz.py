"""Generated bad input, area by area: half drawn by hypothesis, half led by coverage (atheris).

    python benchmarks/fuzz.py --inputs 12000

An area is a strategy and a property in `tests/fuzz/`, in `areas.py` or `hostile_areas.py`; atheris
(libFuzzer) mutates the bytes that hypothesis reads its choices from, and keeps those that reach new
branches of the package. Each area runs in processes of its own, since libFuzzer ends the one that
it runs in. A defect is an exception that is none of the program's own, a message of more than one
printable line, more than
20 s, a wrong count, more memory than an area allows, or a file where none was asked for; it is told
by the place that raised it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "fuzz")]
AREAS = (
    "row",
    "named_format",
    "sound_row",
    "file",
    "sound_file",
    "typed_file",
    "place",
    "template",
    "config",
    "manifest_file",
    "part",
    "totals_file",
    "model_folder",
    "adapter",
    "growing_file",
    "growing_template",
    "command_config",
)
COLUMNS = ("inputs", "refused", "accepted", "slowest", "defects")


def main() -> None:
    args = parsed()
    if args.worker:
        work(args.worker, args.inputs, args.seed, Path(args.out), args.guided)
        return
    each = -(-args.inputs // (2 * len(args.areas)))
    print(f"{'area':14}{'led by':12}" + "".join(f"{c:>10}" for c in COLUMNS))
    every = [run(area, each, args.seed, guided) for area in args.areas for guided in (False, True)]
    total = sum(row["inputs"] for row in every)
    slowest = max(row["slowest"] for row in every)
    found = {place: said for row in every for place, said in row["defects"].items()}
    print(f"{total:,} inputs, the slowest {slowest:.2f} s, {len(found)} defects")
    for place, said in found.items():
        print(f"  {place}: {said}")
    sys.exit(bool(found))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=12_000, help="over all areas")
    parser.add_argument("--areas", nargs="+", choices=AREAS, default=AREAS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--guided", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(area: str, inputs: int, seed: int, guided: bool) -> dict[str, Any]:
    """One area in a process of its own, and its line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        out, empty = Path(folder) / "found.json", Path(folder) / "empty"
        empty.mkdir()  # where it stands and is at home, and writes nothing
        temporary = Path(folder) / "temporary"
        temporary.mkdir()
        environment = {
            **os.environ,
            "HOME": str(empty),
            "TMPDIR": str(temporary),
            "XDG_CACHE_HOME": str(temporary),
            "HF_HOME": str(temporary),
            "MPLCONFIGDIR": str(temporary),
            "HYPOTHESIS_STORAGE_DIRECTORY": str(temporary),
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, __file__, "--worker", area, "--inputs", str(inputs)]
        command += ["--seed", str(seed), "--out", str(out), *(["--guided"] if guided else [])]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
        outside = sorted(str(p.relative_to(empty)) for p in empty.rglob("*"))
        if not out.exists():  # a crash of the whole process is a defect, too
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            row = dict.fromkeys(COLUMNS, 0) | {"defects": {f"{area}: process": last[:200]}}
        else:
            row = json.loads(out.read_text())
        if outside:
            row["defects"][f"{area}: outside"] = f"wrote {outside[:5]}"
    cells = [f"{row[c]:>10,}" for c in COLUMNS[:3]] + [
        f"{row['slowest']:>9.2f}s",
        f"{len(row['defects']):>10}",
    ]
    print(f"{area:14}{'coverage' if guided else 'hypothesis':12}" + "".join(cells), flush=True)
    return row


def work(name: str, inputs: int, seed: int, out: Path, guided: bool) -> None:
    if guided:
        import atheris

        with atheris.instrument_imports(include=["eaft_probe"]):
            import areas
            import hostile_areas
    else:
        import areas
        import hostile_areas  # noqa: F401
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    tally, defects = areas.Tally(), dict[str, str]()

    def one(found: Any) -> None:
        try:
            areas.judged(areas.AREAS[name].run, found, tally)
        except (Exception, areas.Late) as error:
            defects.setdefault(place(error), f"{type(error).__name__}: {error} for {found!r}"[:400])
        if tally.inputs >= inputs:
            finish(tally, defects, out)

    test = seeded(seed)(
        settings(
            max_examples=inputs,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(given(areas.AREAS[name].inputs)(one))
    )
    if guided:
        lead(test.hypothesis.fuzz_one_input, seed)
    test()
    finish(tally, defects, out)


def lead(target: Callable[[bytes], Any], seed: int) -> None:
    """libFuzzer without a limit of its own: `finish` ends it."""
    import atheris

    options = (
        f"-seed={seed}",
        "-max_len=4096",
        "-len_control=20",
        "-rss_limit_mb=0",
        "-handle_alrm=0",
        "-verbosity=0",
        "-report_slow_units=1000",
    )
    atheris.Setup([sys.argv[0], *options], target)
    atheris.Fuzz()


def place(error: BaseException) -> str:
    """The deepest line of the package, and what was raised there."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if "eaft_probe/" in f.filename or f.filename.endswith("areas.py")
    ]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{where} {type(error).__name__}"


def finish(tally: Any, defects: dict[str, str], out: Path) -> None:
    counts = {n: getattr(tally, n) for n in ("inputs", "refused", "accepted", "slowest")}
    out.write_text(json.dumps({**counts, "defects": defects}))
    os._exit(0)  # libFuzzer has no other end


if __name__ == "__main__":
    main()
