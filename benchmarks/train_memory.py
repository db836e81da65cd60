"""Peak memory of one training step above weights and gradients, and above the body's activations.

Every contestant has a process of its own: it makes the gradients of one row, so that the weights
are in memory, the gradients stand and every library has taken what it keeps, and then of the step.
The memory before the step is subtracted from its peak. There is no optimizer. On a CPU

  resident  is the highest resident set during the step (`VmHWM`, which is reset before it, after
            the allocator has given its free pages back), with the workspace of matrix products.
            Linux only.
  tensors   is the highest sum of living tensors, counted by torch's profiler in a second step.

On a GPU they are the allocator's reserved and allocated bytes. `body` runs the body alone with a
trivial loss; what a contestant needs above it is the price of head and loss.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from contestants import prepared, print_table
from trainees import CONTESTANTS, MicroBatch, Trainee, described, step, step_arguments

KINDS = ("resident", "tensors")
# Larger blocks get pages of their own, given back when freed. By default glibc puts up to 32 MB
# into its heap, whose holes differ from run to run: 3,863 and 4,434 MB for the same tensors.
OWN_PAGES = {"MALLOC_MMAP_THRESHOLD_": "262144"}
COMPARED = (
    ("eaft", "full-logits eaft"),
    ("sft", "hf sft"),
    ("eaft", "sft"),
    ("sft", "trl chunked"),
    ("eaft", "trl chunked"),
    ("sft", "trl compact"),
    ("eaft", "trl compact"),
)
Peaks = dict[str, int]  # bytes, by kind


def main() -> None:
    parser = step_arguments(__doc__, micro_batches=1)
    parser.add_argument("--child", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(args)))
        return
    names = ["body", *(n for n in args.contestants if n != "body")]
    report({name: in_fresh_process(name) for name in names})


def in_fresh_process(name: str) -> Peaks:
    command = [sys.executable, *sys.argv, "--child", name]
    finished = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | OWN_PAGES
    )
    peaks: Peaks = json.loads(finished.stdout.splitlines()[-1])
    found = ", ".join(f"{k} {v / 1e6:,.0f} MB" for k, v in peaks.items())
    print(f"{name}: {found}", file=sys.stderr)
    return peaks


# --- in a process of its own ---


def measured(args: argparse.Namespace) -> Peaks:
    """Peaks of one contestant's step, here."""
    with prepared(args, args.rows * args.micro_batches, args.dtype) as work:
        trainee = Trainee.of(work, args.rows)
        print(described(work, trainee), file=sys.stderr)
    trainee.clear()
    one_row = MicroBatch(*(t[:1] for t in trainee.batches[0]))
    CONTESTANTS[args.child](trainee, one_row).backward()
    on_gpu = trainee.device.type == "cuda"
    return gpu_peaks(trainee, args.child) if on_gpu else cpu_peaks(trainee, args.child)


def gpu_peaks(trainee: Trainee, name: str) -> Peaks:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    step(trainee, name)
    peaks = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
    return {kind: p - b for kind, p, b in zip(KINDS, peaks, before, strict=True)}


def cpu_peaks(trainee: Trainee, name: str) -> Peaks:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = status_bytes("VmRSS")
    step(trainee, name)
    return {"resident": status_bytes("VmHWM") - before, "tensors": tensor_peak(trainee, name)}


def status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(x.split()[1]) for x in lines if x.startswith(f"{field}:"))


def tensor_peak(trainee: Trainee, name: str) -> int:
    """The highest sum of the tensors that a step makes and has not freed yet."""
    with torch.profiler.profile(profile_memory=True) as profile:
        step(trainee, name)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return max(int(e["args"]["Total Allocated"]) for e in events if e["name"] == "[memory]")


# --- tables ---


def report(found: dict[str, Peaks]) -> None:
    head = ("peak MB", *KINDS, *(f"{k} above the body's" for k in KINDS))
    print_table(head, [row(name, peaks, found["body"]) for name, peaks in found.items()])
    print()
    pairs = [(a, b) for a, b in COMPARED if a in found and b in found]
    print_table(("above the body's", *KINDS), [compared(a, b, found) for a, b in pairs])


def row(name: str, peaks: Peaks, body: Peaks) -> tuple[str, ...]:
    above = (peaks[k] - body[k] for k in KINDS)
    return (name, *(f"{b / 1e6:,.0f}" for b in (*(peaks[k] for k in KINDS), *above)))


def compared(a: str, b: str, found: dict[str, Peaks]) -> tuple[str, ...]:
    body = found["body"]
    ratios = ((found[a][k] - body[k]) / (found[b][k] - body[k]) for k in KINDS)
    return (f"{a} / {b}", *(f"{r:.3f}" for r in ratios))


if __name__ == "__main__":
    main()
