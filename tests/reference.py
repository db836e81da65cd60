"""Float64 loops written from the formulas. They share no code with the package.

A position is a label y under logits over V tokens; h is its hidden state, W (V, D) the head.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Position:
    """One label under logits = cap · tanh(scale · (W h + b) / cap), all in float64."""

    label: int
    hidden: Floats
    weight: Floats
    bias: Floats | None = None
    scale: float = 1.0
    softcap: float | None = None
    other: "Position | None" = None  # the same position under the reference model

    def projected(self) -> Floats:
        plain = self.weight @ self.hidden
        return plain if self.bias is None else plain + self.bias

    def logits(self) -> Floats:
        return np.array([self._scaled(float(x)) for x in self.projected()])

    def _scaled(self, x: float) -> float:
        y = x * self.scale
        return y if self.softcap is None else self.softcap * math.tanh(y / self.softcap)

    def slope(self, x: float) -> float:
        """d logit / d (W h + b)."""
        if self.softcap is None:
            return self.scale
        return self.scale / math.cosh(min(x * self.scale / self.softcap, 300.0)) ** 2


def log_softmax(logits: Floats) -> Floats:
    top = max(logits)
    return np.array(logits - top - math.log(math.fsum(math.exp(x - top) for x in logits)))


def entropy(logprobs: Floats) -> float:
    return -math.fsum(math.exp(x) * x for x in logprobs if x > -math.inf)


def entropy_top(position: Position, k: int) -> float:
    return entropy(log_softmax(np.array(sorted(position.logits())[-k:])))


def rank(position: Position) -> int:
    logits = position.logits()
    return sum(1 for x in logits if x > logits[position.label])


def top1(position: Position) -> int:
    logits = position.logits()
    return (
        position.label if rank(position) == 0 else max(range(len(logits)), key=logits.__getitem__)
    )


def logit_gradient(position: Position) -> Floats:
    """d nll / d logits = P − onehot. 1 − p as the sum of the others, which loses no digits."""
    p = np.exp(log_softmax(position.logits()))
    p[position.label] = 0.0
    p[position.label] = -math.fsum(p)
    return p


def output_gradient(position: Position) -> Floats:
    """d nll / d (W h + b): through the scale and the soft-cap."""
    slopes = [position.slope(float(x)) for x in position.projected()]
    return logit_gradient(position) * np.array(slopes)


def norm(values: Floats) -> float:
    return math.sqrt(math.fsum(float(x) ** 2 for x in values.ravel()))


def kl_reference(position: Position) -> float:
    assert position.other is not None
    q, p = log_softmax(position.other.logits()), log_softmax(position.logits())
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(q, p, strict=True) if a > -math.inf)


def logprob(position: Position) -> float:
    return float(log_softmax(position.logits())[position.label])


REFERENCE: dict[str, Callable[[Position], float]] = {
    "logprob": logprob,
    "prob": lambda x: math.exp(logprob(x)),
    "entropy": lambda x: entropy(log_softmax(x.logits())),
    "concentration": lambda x: math.fsum(math.exp(a) ** 2 for a in log_softmax(x.logits())),
    "rank": rank,
    "top1_id": top1,
    "top1_prob": lambda x: math.exp(max(log_softmax(x.logits()))),
    "grad_logits": lambda x: norm(logit_gradient(x)),
    "grad_head": lambda x: norm(np.outer(output_gradient(x), x.hidden)),
    "grad_hidden": lambda x: norm(x.weight.T @ output_gradient(x)),
    "kl_reference": kl_reference,
    "entropy_top5": lambda x: entropy_top(x, 5),
    "entropy_top10": lambda x: entropy_top(x, 10),
    "entropy_top20": lambda x: entropy_top(x, 20),
    "entropy_top50": lambda x: entropy_top(x, 50),
    "entropy_top100": lambda x: entropy_top(x, 100),
    "entropy_top200": lambda x: entropy_top(x, 200),
    "entropy_top500": lambda x: entropy_top(x, 500),
    "entropy_top1000": lambda x: entropy_top(x, 1000),
    "entropy_top2000": lambda x: entropy_top(x, 2000),
}
