"""Whether a scan survives: workers, parents, nodes, drivers killed or paused, a full disk, a rival,
parts and data that are taken away under it, little memory.

Each disturbed scan is finished by the same command where it does not finish by itself; then its
parts are compared with an undisturbed scan's. Exit status 1 where a byte differs.

    python benchmarks/faults.py --data gsm8k/test.jsonl --model stories260K
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from contestants import print_table

MOST_TRIES = 4  # for each time that a fault should strike
SECONDS = 900  # after which a scan counts as hanging
HEAD = ("fault", "tries", "struck", "tokens lost", "tokens duplicated", "parts identical", "s")
Hit = Callable[["Bench", Path], bool]  # disturbs and finishes a scan; whether it struck in time


@dataclass
class Bench:
    """What all faults share."""

    args: argparse.Namespace
    folder: Path
    dice: random.Random = field(default_factory=lambda: random.Random(0))

    def command(self, out: Path, *more: str) -> list[str]:
        a, data = self.args, self.data_of(out)
        return [
            sys.executable,
            "-m",
            "eaft_probe",
            "scan",
            data,
            "--model",
            a.model,
            "--out",
            str(out),
            "--limit",
            str(a.rows),
            "--rows-per-unit",
            str(a.rows_per_unit),
            "--threads",
            "1",
            *more,
        ]

    def data_of(self, out: Path) -> str:
        """A fault that damages the data has a copy of its own."""
        own = out.with_name(out.name + Path(self.args.data).suffix)
        return str(own) if own.exists() else str(self.args.data)

    def start(self, out: Path, *more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(out, *more), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def finish(self, out: Path, *more: str) -> None:
        require(self.start(out, *more), 0)

    @cached_property
    def undisturbed(self) -> Path:
        self.finish(self.folder / "undisturbed")
        return self.folder / "undisturbed"

    @cached_property
    def seconds(self) -> tuple[float, float]:
        """Of an undisturbed scan by two workers, to its first part and from there to its end."""
        start, out = time.monotonic(), self.folder / "timed"
        process = self.start(out, "--workers", "2")
        begun(process, out)
        first = time.monotonic()
        require(process, 0)
        return first - start, time.monotonic() - first

    @cached_property
    def cluster(self) -> Any:
        """A Ray head without a processor and two nodes with one each."""
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            made.add_node(num_cpus=1)
        return made

    @property
    def on_ray(self) -> tuple[str, ...]:
        return ("--engine", "ray", "--workers", "2", "--address", self.cluster.address)

    def any_moment(self, process: "subprocess.Popen[str]", out: Path) -> bool:
        """One in four before the first part, the others after it."""
        before, after = self.seconds
        if self.dice.random() < 0.25:
            return self.moment(process, before)
        return begun(process, out) and self.moment(process, after)

    def moment(self, process: "subprocess.Popen[str]", of: float) -> bool:
        """Waits for a random moment of the next `of` seconds; whether the scan is still at it."""
        time.sleep(self.dice.random() * of)
        return process.poll() is None


def require(process: "subprocess.Popen[str]", *statuses: int) -> str:
    """The errors of a process that ends as it should."""
    _, errors = process.communicate(timeout=SECONDS)
    if process.returncode not in statuses or "Traceback" in errors:
        raise SystemExit(f"ended with {process.returncode}: {errors[-3000:]}")
    return errors


def begun(process: "subprocess.Popen[str]", out: Path) -> bool:
    """Waits for the first part; whether the scan is still at work then."""
    while process.poll() is None and not list(out.glob("examples/part-*")):
        time.sleep(0.02)
    return process.poll() is None


# --- the faults ---


def local_worker(bench: Bench, out: Path) -> bool:
    process = bench.start(out, "--workers", "2")
    alive = bench.any_moment(process, out)
    workers = psutil.Process(process.pid).children() if alive else []
    if workers:
        bench.dice.choice(workers).kill()
    require(process, 0)
    return bool(workers)


def local_parent(bench: Bench, out: Path) -> bool:
    process = bench.start(out, "--workers", "2")
    alive = bench.any_moment(process, out)
    workers = psutil.Process(process.pid).children() if alive else []
    process.kill()
    process.communicate()
    _, orphans = psutil.wait_procs(workers, timeout=10)
    if orphans:
        raise SystemExit(f"{len(orphans)} workers outlive their parent by 10 s")
    bench.finish(out, "--workers", "2")
    return alive


def ray_worker(bench: Bench, out: Path) -> bool:
    process = bench.start(out, *bench.on_ray)
    found = actors() if begun(process, out) else []
    if found:
        bench.dice.choice(found).kill()
    require(process, 0)
    return bool(found)


def ray_node(bench: Bench, out: Path) -> bool:
    process = bench.start(out, *bench.on_ray)
    if alive := begun(process, out):
        nodes = list(bench.cluster.worker_nodes)
        bench.cluster.remove_node(bench.dice.choice(nodes), allow_graceful=False)
        bench.cluster.add_node(num_cpus=1)
    require(process, 0)
    return alive


def ray_driver(bench: Bench, out: Path) -> bool:
    process = bench.start(out, *bench.on_ray)
    alive = begun(process, out) and bench.moment(process, 1.0)
    process.kill()
    process.communicate()
    bench.finish(out, *bench.on_ray)
    return alive


def ray_pause(bench: Bench, out: Path) -> bool:
    process = bench.start(out, *bench.on_ray)
    found = actors()[:1] if begun(process, out) else []
    for actor in found:
        actor.send_signal(signal.SIGSTOP)
    time.sleep(bench.args.pause if found else 0)
    for actor in found:
        with suppress(psutil.NoSuchProcess):  # given up by now, and another is in its place
            actor.send_signal(signal.SIGCONT)
    require(process, 0)
    return bool(found)


def actors() -> list[psutil.Process]:
    """Of all nodes: they are processes of this machine."""
    named = [(p, p.info["cmdline"] or [""]) for p in psutil.process_iter(["cmdline"])]
    return [p for p, line in named if line[0].startswith("ray::Actor")]


def paused_parent(bench: Bench, out: Path) -> bool:
    """Another run finishes the scan meanwhile; the first one wakes and finds its parts there."""
    process = bench.start(out)
    alive = begun(process, out)
    process.send_signal(signal.SIGSTOP)
    bench.finish(out)
    process.send_signal(signal.SIGCONT)
    require(process, 0)
    return alive


def two_drivers(bench: Bench, out: Path) -> bool:
    first, second = bench.start(out), bench.start(out)
    both = begun(first, out) and second.poll() is None
    require(first, 0)
    require(second, 0)
    bench.finish(out)
    return both


def full_disk(bench: Bench, out: Path) -> bool:
    """A tmpfs with room for half of the scan, which then grows."""
    size = sum(f.stat().st_size for f in bench.undisturbed.rglob("part-*")) // 2
    with tmpfs(out, size):
        (out / "scan").mkdir()
        said = require(bench.start(out / "scan", "--workers", "2"), 1)
        subprocess.run(["mount", "-o", "remount,size=1g", str(out)], check=True)
        bench.finish(out / "scan", "--workers", "2")
        copy = out.with_name(out.name + "-kept")
        subprocess.run(["cp", "-r", str(out / "scan"), str(copy)], check=True)
    copy.rename(out / "scan-kept")
    return "No space left" in said


@contextmanager
def tmpfs(out: Path, size: int) -> Iterator[None]:
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(out)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(out)], check=True)


def lost_part(bench: Bench, out: Path) -> bool:
    """A part is removed while later ones are made."""
    process = bench.start(out)
    alive = bench.any_moment(process, out)
    parts = list(out.glob("*/part-*")) if alive else []
    if parts:
        bench.dice.choice(parts).unlink(missing_ok=True)
    require(process, 0, 2)
    bench.finish(out)
    return bool(parts)


def cut_data(bench: Bench, out: Path) -> bool:
    """The data's second half is gone for as long as the scan lives."""
    own = out.with_name(out.name + Path(bench.args.data).suffix)
    shutil.copyfile(bench.args.data, own)
    process = bench.start(out)
    alive = bench.any_moment(process, out)
    os.truncate(own, own.stat().st_size // 2)
    require(process, 0, 1, 2)
    shutil.copyfile(bench.args.data, own)
    bench.finish(out)
    return alive


def little_memory(bench: Bench, out: Path) -> bool:
    """Between what Python needs and what a scan does."""
    size = int(bench.dice.uniform(0.3, 4) * 1e9)
    limited = ["prlimit", f"--as={size}", *bench.command(out)]
    process = subprocess.Popen(
        limited, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    require(process, 0, 1, 2)
    bench.finish(out)
    return process.returncode != 0


# name → (fault, whether it is repeated --times times rather than --few)
FAULTS: dict[str, tuple[Hit, bool]] = {
    "local: kill -9 of a worker": (local_worker, True),
    "local: kill -9 of the parent": (local_parent, True),
    "local: parent paused, another finishes": (paused_parent, False),
    "two drivers on one folder": (two_drivers, False),
    "full disk (tmpfs, root only)": (full_disk, False),
    "a part is removed": (lost_part, False),
    "the data is cut": (cut_data, False),
    "little memory": (little_memory, False),
    "ray: kill -9 of a worker": (ray_worker, False),
    "ray: a node is lost": (ray_node, False),
    "ray: kill -9 of the driver": (ray_driver, False),
    "ray: a worker is paused": (ray_pause, False),
}


# --- the table ---


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("part-*.parquet"))
    return {f"{f.parent.name}/{f.name}": sha256(f.read_bytes()).hexdigest() for f in files}


def places(folder: Path) -> Counter[tuple[int, int]]:
    """How often each token was written."""
    found: Counter[tuple[int, int]] = Counter()
    for file in folder.rglob("tokens/part-*.parquet"):
        table = pq.read_table(file, columns=["example", "position"], partitioning=None)
        found.update(zip(*(table[c].to_pylist() for c in table.column_names), strict=True))
    return found


def row(bench: Bench, name: str) -> tuple[str, ...]:
    """Strikes so many times; the columns of HEAD."""
    hit, often = FAULTS[name]
    wanted, whole = places(bench.undisturbed), hashes(bench.undisturbed)
    times = bench.args.times if often else bench.args.few
    struck = lost = twice = same = 0
    began = time.monotonic()
    tries = 0
    while struck < times and tries < MOST_TRIES * times:  # some come too late
        out = bench.folder / f"{hit.__name__}-{tries}"
        tries, struck = tries + 1, struck + hit(bench, out)
        found = places(out)
        lost += (wanted - found).total()
        twice += (found - wanted).total()
        same += hashes(out) == whole
        print(f"{name}: {struck}/{times} in {tries} tries", file=sys.stderr)
    seconds = f"{time.monotonic() - began:.0f}"
    made = (name, str(tries), str(struck), str(lost), str(twice), f"{same} of {tries}", seconds)
    print(" | ".join(made), file=sys.stderr)  # the table comes when all have struck
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True, help="stories260K, or another small one")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--rows-per-unit", type=int, default=4)
    parser.add_argument("--times", type=int, default=30, help="of each kill of the local engine")
    parser.add_argument("--few", type=int, default=3, help="times of every other fault")
    parser.add_argument("--pause", type=float, default=60, help="seconds")
    parser.add_argument("--only", nargs="+", default=[""], help="faults whose name holds one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        rows = [row(bench, name) for name in FAULTS if any(o in name for o in args.only)]
        tokens, units = places(bench.undisturbed).total(), len(hashes(bench.undisturbed)) // 2
        if "cluster" in vars(bench):
            bench.cluster.shutdown()
    print(f"{args.rows} rows of {args.data} under {args.model}: {tokens:,} tokens, {units} units\n")
    print_table(HEAD, rows)
    wrong = [r for r in rows if r[3:5] != ("0", "0") or r[5] != f"{r[1]} of {r[1]}"]
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
