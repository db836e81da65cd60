"""How long one training step takes: this package, plain SFT, TRL's fused head, full-logits EAFT.

Timed are forward, backward and the addition into `.grad` of all micro-batches of a step; zeroing
the gradients is not, and there is no optimizer, which would be the same for all. First every
contestant's loss and gradients are compared with those of the plainest way to make them, and the
run ends there if they differ. In each round all contestants run once, in an order that rotates
and turns round. A ratio is of minima; its spread goes over the rounds.
"""

import argparse
import statistics
import sys
import time

import torch
from contestants import prepared, print_table
from trainees import Trainee, described, step, step_arguments

Times = dict[str, list[float]]  # seconds of every round

# (contestant, the one it must agree with, largest relative difference of loss, of gradients)
AGREE = (
    ("sft", "hf sft", 1e-4, 1e-3),
    ("trl chunked", "hf sft", 1e-4, 1e-3),
    ("trl compact", "hf sft", 1e-4, 1e-3),
    ("eaft", "full-logits eaft", 2e-3, 2e-3),  # 3.0 / ln 20 is 1.0014
)
COMPARED = (
    ("eaft", "sft"),
    ("eaft", "full-logits eaft"),
    ("sft", "hf sft"),
    ("sft", "trl chunked"),
    ("eaft", "trl chunked"),
    ("sft", "trl compact"),
    ("eaft", "trl compact"),
)


def main() -> None:
    parser = step_arguments(__doc__, micro_batches=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with prepared(args, args.rows * args.micro_batches, args.dtype) as work:
        trainee = Trainee.of(work, args.rows)
        print(described(work, trainee) + "\n", flush=True)
        agree(trainee, args.contestants)
        report(trainee, measured(trainee, args))


# --- the same work? ---


def agree(trainee: Trainee, contestants: list[str]) -> None:
    """Prints how far losses and gradients lie apart. Ends the run where that is too far."""
    rows, wrong = list[tuple[str, ...]](), list[str]()
    made: dict[str, tuple[float, torch.Tensor]] = {}
    for name, other, loss_most, gradient_most in AGREE:
        if name not in contestants:
            continue
        if other not in made:
            made = {other: gradients(trainee, other)}  # two sets are held at a time, not seven
        loss, apart, gradient_apart = differences(gradients(trainee, name), made[other])
        rows.append((name, other, f"{loss:.6f}", f"{apart:.1e}", f"{gradient_apart:.1e}"))
        if not (apart <= loss_most and gradient_apart <= gradient_most):
            wrong.append(name)
    print_table(("", "against", "loss", "loss differs", "gradients differ"), rows)
    print(flush=True)
    if wrong:
        raise SystemExit(f"not the same work: {', '.join(wrong)}")


def gradients(trainee: Trainee, name: str) -> tuple[float, torch.Tensor]:
    """The loss of one step, and all of its gradients in a row."""
    trainee.clear()
    loss = step(trainee, name)
    found = [w.grad for w in trainee.model.parameters() if w.grad is not None]
    return loss, torch.cat([g.flatten() for g in found])


def differences(
    mine: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor]
) -> tuple[float, float, float]:
    """My loss, and how far loss and gradients lie from the other's, relative to those."""
    apart = torch.linalg.vector_norm(mine[1] - other[1]) / torch.linalg.vector_norm(other[1])
    return mine[0], abs(mine[0] / other[0] - 1), float(apart)


# --- time ---


def measured(trainee: Trainee, args: argparse.Namespace) -> Times:
    """Seconds of every run. Round 0 does not count."""
    times: Times = {name: [] for name in args.contestants}
    for number in range(args.rounds + 1):
        for name in order(args.contestants, number):
            seconds = timed(trainee, name)
            print(f"{number}/{args.rounds} {name} {seconds:.2f} s", file=sys.stderr)
            if number > 0:
                times[name].append(seconds)
    return times


def order(names: list[str], number: int) -> list[str]:
    """Another one first in every round, and another one before each in every second."""
    at = number // 2 % len(names)
    rotated = names[at:] + names[:at]
    return rotated[::-1] if number % 2 else rotated


def timed(trainee: Trainee, name: str) -> float:
    trainee.clear()
    start = time.perf_counter()
    step(trainee, name)
    return time.perf_counter() - start


def report(trainee: Trainee, times: Times) -> None:
    head = ("", "min s", "median s", "max s", "trained tokens/s")
    print_table(head, [row(name, times[name], trainee.count) for name in times])
    print()
    pairs = [(a, b) for a, b in COMPARED if a in times and b in times]
    print_table(("", "ratio", "spread"), [compared(a, b, times) for a, b in pairs])


def row(name: str, mine: list[float], tokens: int) -> tuple[str, ...]:
    seconds = (f"{s:.2f}" for s in (min(mine), statistics.median(mine), max(mine)))
    return (name, *seconds, f"{tokens / min(mine):,.0f}")


def compared(a: str, b: str, times: Times) -> tuple[str, ...]:
    pairs = [x / y for x, y in zip(times[a], times[b], strict=True)]
    ratio = f"{min(times[a]) / min(times[b]):.3f}"
    return (f"{a} / {b}", ratio, f"{min(pairs):.3f}..{max(pairs):.3f}")


if __name__ == "__main__":
    main()
