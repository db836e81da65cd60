"""Gates that see the label's probability."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from eaft_probe.objectives.gates.entry import entry, from_step, ones, require
from eaft_probe.objectives.objective import Column, Columns, Objective, Step


@entry
@dataclass(frozen=True)
class Dft(Objective):
    """arXiv 2508.05629."""

    name, formula, authors_lr = "dft", "p", 5e-5

    def __call__(self, columns: Columns) -> Column:
        return columns["prob"]


@entry
@dataclass(frozen=True)
class Qlog(Objective):
    """The gradient of (1 − p^q) / q. arXiv 2510.00526."""

    name, formula = "qlog", "p^q"
    q: float = 0.5

    def __call__(self, columns: Columns) -> Column:
        return columns["prob"] ** self.q


@entry
@dataclass(frozen=True)
class Deft(Objective):
    """arXiv 2602.11424."""

    name, formula, authors_lr = "deft", "p^(ΣP²)", 5e-5
    reads = ("prob", "concentration")

    def __call__(self, columns: Columns) -> Column:
        return columns["prob"] ** columns["concentration"]


@entry
@dataclass(frozen=True)
class Cayley(Objective):
    """p^a, a = b + (1 − b) p / (2 − p) within 0.001..1, b = floor · mean p of the step.

    arXiv 2602.11424.
    """

    name, formula, of_step = "cayley", "p^a, a from p/(2−p) and the mean p", True
    authors_lr = 5e-5
    floor: float = 0.5
    _mean: float = field(default=math.nan, repr=False)

    def resolve(self, step: Step) -> "Cayley":
        return replace(self, _mean=step.tokens.mean(lambda columns: columns["prob"]))

    def __call__(self, columns: Columns) -> Column:
        p, least = columns["prob"], self.floor * from_step(self._mean)
        return p ** (least + (1 - least) * p / (2 - p)).clip(1e-3, 1)


@entry
@dataclass(frozen=True)
class Talr(Objective):
    """max(p^(1/τ), floor); τ = auto is the median mean nll of the step's examples, nats.

    arXiv 2509.20758.
    """

    name, formula, of_step = "talr", "max(p^(1/τ), floor)", True
    authors_lr = 1e-6
    tau: Literal["auto"] | float = "auto"
    floor: float = 0.01
    _tau: float = field(default=math.nan, repr=False)

    def __post_init__(self) -> None:
        require(self.tau == "auto" or self.tau > 0, f"talr: tau is above 0, found {self.tau}")

    def resolve(self, step: Step) -> "Talr":
        if self.tau != "auto":
            return replace(self, _tau=self.tau)
        median = step.examples.quantile(lambda columns: columns["mean_nll"], 0.5)
        return replace(self, _tau=max(median, 1e-6))

    def __call__(self, columns: Columns) -> Column:
        return (columns["prob"] ** (1 / from_step(self._tau))).clip(self.floor, None)


@entry
@dataclass(frozen=True)
class Focal(Objective):
    """arXiv 1708.02002."""

    name, formula = "focal", "(1 − p)^γ"
    gamma: float = 1.0

    def __call__(self, columns: Columns) -> Column:
        return (1 - columns["prob"]) ** self.gamma


@entry
@dataclass(frozen=True)
class Profit(Objective):
    """arXiv 2601.09195."""

    name, formula = "profit", "1 where p ≥ threshold"
    threshold: float = 0.1

    def __call__(self, columns: Columns) -> Column:
        return (columns["prob"] >= self.threshold) * ones(columns["prob"])


@entry
@dataclass(frozen=True)
class Chord(Objective):
    """The φ of arXiv 2508.11408: neither what is known nor what is out of reach."""

    name, formula = "chord", "p (1 − p)"

    def __call__(self, columns: Columns) -> Column:
        return columns["prob"] * (1 - columns["prob"])


@entry
@dataclass(frozen=True)
class Clip(Objective):
    """min(1, c · m / nll), m the median nll of the step: no token pulls more than c medians do.

    A custom of practitioners, without a paper.
    """

    name, formula, of_step = "clip", "min(1, c · median nll / nll)", True
    reads = ("logprob",)
    c: float = 3.0
    _median: float = field(default=math.nan, repr=False)

    def resolve(self, step: Step) -> "Clip":
        return replace(self, _median=step.tokens.quantile(lambda columns: -columns["logprob"], 0.5))

    def __call__(self, columns: Columns) -> Column:
        nll, most = -columns["logprob"], self.c * from_step(self._median)
        below = (nll <= most) * ones(nll)
        return below + (1 - below) * most / nll.clip(1e-30, None)
