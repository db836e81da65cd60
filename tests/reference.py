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


def varentropy(position: Position) -> float:
    logprobs = log_softmax(position.logits())
    h = entropy(logprobs)
    return math.fsum(math.exp(x) * (-x - h) ** 2 for x in logprobs if x > -math.inf)


def surprise(position: Position) -> float:
    h = entropy(log_softmax(position.logits()))
    return (-logprob(position) - h) / math.sqrt(max(varentropy(position), 1e-6))


REFERENCE: dict[str, Callable[[Position], float]] = {
    "logprob": logprob,
    "prob": lambda x: math.exp(logprob(x)),
    "entropy": lambda x: entropy(log_softmax(x.logits())),
    "concentration": lambda x: math.fsum(math.exp(a) ** 2 for a in log_softmax(x.logits())),
    "varentropy": varentropy,
    "surprise": surprise,
    "rank": rank,
    "top1_id": top1,
    "top1_prob": lambda x: math.exp(max(log_softmax(x.logits()))),
    "grad_logits": lambda x: norm(logit_gradient(x)),
    "grad_head": lambda x: norm(np.outer(output_gradient(x), x.hidden)),
    "grad_hidden": lambda x: norm(x.weight.T @ output_gradient(x)),
    "kl_reference": kl_reference,
    "logprob_alone": logprob,  # of another pass, see tests/verbs/test_alone.py
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


# --- gates: an objective as a loop over tokens, from METHODS section 3 and the papers ---
# Each takes the tokens of a step (name → list), the mean nll of its examples under the model and
# under the base, and its fields; the defaults are those of DESIGN section 8.

Tokens = dict[str, list[float]]
Examples = dict[str, list[float]]


def middle(values: list[float]) -> float:
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def sft(t: Tokens, e: Examples) -> list[float]:
    return [1.0 for _ in t["prob"]]


def eaft(
    t: Tokens,
    e: Examples,
    *,
    gate: str = "power",
    alpha: float = 1.0,
    sharpness: float = 30.0,
    center: float = 0.17,
    k: int = 20,
    entropy: str = "top",
    compat: str = "paper",
) -> list[float]:
    gates = []
    for h in t["entropy" if entropy == "full" else f"entropy_top{k}"]:
        share = min(h / math.log(k), 1.0)
        if compat == "llamafactory":
            share = h / 3.0
        if compat == "axolotl":
            share = h
        if gate == "power":
            gates.append(math.pow(share, alpha))
        elif gate == "sigmoid":
            gates.append(1 / (1 + math.exp(sharpness * (center - share))))
        else:
            gates.append(1.0 if share > center else 0.0)
    return gates


def masked_sft(
    t: Tokens,
    e: Examples,
    *,
    entropy_below: float = 0.17 * math.log(20),
    prob_below: float = 0.2,
    conflicts: str = "live",
) -> list[float]:
    if conflicts == "scan":
        return [0.0 if c else 1.0 for c in t["base_conflict"]]
    rows = zip(t["entropy"], t["prob"], strict=True)
    return [0.0 if h < entropy_below and p < prob_below else 1.0 for h, p in rows]


def mile(t: Tokens, e: Examples, *, gamma: float = 1.0) -> list[float]:
    raw = [math.pow(1 + h, gamma) for h in t["entropy"]]
    mean = math.fsum(raw) / len(raw)
    return [r / mean for r in raw]


def dft(t: Tokens, e: Examples) -> list[float]:
    return [math.exp(x) for x in t["logprob"]]


def qlog(t: Tokens, e: Examples, *, q: float = 0.5) -> list[float]:
    return [math.exp(q * x) for x in t["logprob"]]


def deft(t: Tokens, e: Examples) -> list[float]:
    return [math.exp(s * x) for s, x in zip(t["concentration"], t["logprob"], strict=True)]


def cayley(t: Tokens, e: Examples, *, floor: float = 0.5) -> list[float]:
    least = floor * math.fsum(t["prob"]) / len(t["prob"])
    gates = []
    for p in t["prob"]:
        missed = 1 - p
        a = least + (1 - least) * (1 - missed) / (1 + missed)
        gates.append(p ** min(max(a, 0.001), 1.0))
    return gates


def talr(t: Tokens, e: Examples, *, tau: float | str = "auto", floor: float = 0.01) -> list[float]:
    heat = max(middle(e["mean_nll"]), 1e-6) if tau == "auto" else float(tau)
    return [max(math.exp(x / heat), floor) for x in t["logprob"]]


def focal(t: Tokens, e: Examples, *, gamma: float = 1.0) -> list[float]:
    return [math.pow(1 - p, gamma) for p in t["prob"]]


def profit(t: Tokens, e: Examples, *, threshold: float = 0.1) -> list[float]:
    return [float(p >= threshold) for p in t["prob"]]


def stm(t: Tokens, e: Examples, *, threshold: float = 0.4) -> list[float]:
    return [float(p >= threshold) for p in t["base_prob"]]


def flow(t: Tokens, e: Examples, *, normalize: str = "none") -> list[float]:
    heat = middle(e["base_mean_nll"])
    weights = [math.exp(-f / heat) for f in e["base_mean_nll"]]
    mean = 1.0 if normalize == "none" else math.fsum(weights) / len(weights)
    return [math.exp(-f / heat) / mean for f in t["base_mean_nll"]]


def rho(t: Tokens, e: Examples, *, keep: float = 0.6, rank: str = "step") -> list[float]:
    """1 for the `keep · N` tokens with the largest excess, rounded to a whole one; of an example
    rounded up."""
    excess = [b - a for a, b in zip(t["logprob"], t["reference_logprob"], strict=True)]
    if rank == "example":
        gates = []
        for one, x in zip(t["example"], excess, strict=True):
            among = [y for other, y in zip(t["example"], excess, strict=True) if other == one]
            gates.append(float(sum(y > x for y in among) < keep * len(among)))
        return gates
    order = sorted(range(len(excess)), key=lambda i: -excess[i])
    kept = set(order[: round(keep * len(excess))])
    return [float(i in kept) for i in range(len(excess))]


def tail(t: Tokens, e: Examples, *, drop: float = 0.1) -> list[float]:
    """0 on the examples above the (1 − drop) quantile of how far their mean nll fell, if it did."""
    falls = sorted(b - a for a, b in zip(e["mean_nll"], e["base_mean_nll"], strict=True))
    at = (1 - drop) * (len(falls) - 1)
    low, high = falls[math.floor(at)], falls[math.ceil(at)]
    least = max(low + (high - low) * (at % 1), 1e-4)
    return [0.0 if f > least else 1.0 for f in t["nll_fall"]]


def idft(
    t: Tokens,
    e: Examples,
    *,
    beta: float = 1.0,
    least: float = 0.1,
    most: float = 2.0,
    lam: float = 1.0,
    detach: str = "all",
) -> list[float]:
    gates = []
    for x, h in zip(t["logprob"], t["entropy"], strict=True):
        unexpected = -(x + h) / beta
        heat = math.exp(unexpected) if unexpected < 100 else math.inf
        gamma = 1 + lam * (min(max(heat, least), most) - 1)
        own = 1.0 if detach == "all" else 1 + gamma * x
        gates.append(math.exp(gamma * x) * own)
    return gates


def chord(t: Tokens, e: Examples) -> list[float]:
    return [p * (1 - p) for p in t["prob"]]


def clip(t: Tokens, e: Examples, *, c: float = 3.0) -> list[float]:
    most = c * middle([-x for x in t["logprob"]])
    return [1.0 if -x <= most else most / -x for x in t["logprob"]]


def sft_kl(t: Tokens, e: Examples, *, beta: float = 0.5, direction: str = "forward") -> list[float]:
    return sft(t, e)


def asft(t: Tokens, e: Examples, *, beta: float = 0.05, direction: str = "forward") -> list[float]:
    return dft(t, e)


GATES: dict[str, Callable[..., list[float]]] = {
    f.__name__.replace("_", "-"): f
    for f in (
        sft,
        eaft,
        masked_sft,
        mile,
        dft,
        qlog,
        deft,
        cayley,
        talr,
        focal,
        profit,
        stm,
        flow,
        rho,
        tail,
        idft,
        chord,
        clip,
        sft_kl,
        asft,
    )
}
