"""Gates that see a finished scan, under the base model or another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from eaft_probe.objectives.gates.entry import entry, from_step, ones, require
from eaft_probe.objectives.objective import Column, Columns, Objective, Step

LEAST_FALL = 1e-4  # nats: a log-probability differs by 3e-5 between two passes of one model


@entry
@dataclass(frozen=True)
class Stm(Objective):
    """arXiv 2501.14315; the threshold is a perplexity of 2.5."""

    name, formula = "stm", "1 where base p ≥ threshold"
    reads = ("base_prob",)
    threshold: float = 0.4

    def __call__(self, columns: Columns) -> Column:
        return (columns["base_prob"] >= self.threshold) * ones(columns["base_prob"])


@entry
@dataclass(frozen=True)
class Flow(Objective):
    """exp(−f / τ), f the base model's mean nll of the example, τ the median of all examples of the
    scan. arXiv 2502.02797."""

    name, formula, of_scan = "flow", "exp(−base mean nll / median)", True
    reads = ("base_mean_nll",)
    normalize: Literal["none", "mean1"] = "none"
    _tau: float = field(default=math.nan, repr=False)
    _mean: float = field(default=1.0, repr=False)

    def resolve(self, step: Step) -> "Flow":
        median = step.examples.quantile(lambda columns: columns["base_mean_nll"], 0.5)
        unscaled = replace(self, _tau=max(median, 1e-6))
        if self.normalize == "none":
            return unscaled
        return replace(unscaled, _mean=step.examples.mean(unscaled))

    def __call__(self, columns: Columns) -> Column:
        return math.e ** (-columns["base_mean_nll"] / from_step(self._tau)) / self._mean


@entry
@dataclass(frozen=True)
class Rho(Objective):
    """1 for the share `keep` of tokens with the largest nll − reference nll, ties kept.

    `rank`: among those of the step (arXiv 2404.07965), of their own example, or of the whole data
    under the model that a run starts from (arXiv 2502.01968).
    """

    name, formula = "rho", "1 for the largest nll − reference nll"
    keep: float = 0.6
    rank: Literal["step", "example", "data"] = "step"
    _threshold: float = field(default=math.nan, repr=False)

    def __post_init__(self) -> None:
        require(0 < self.keep <= 1, f"rho: keep is above 0 and at most 1, found {self.keep:g}")

    @property
    def of_step(self) -> bool:
        return self.rank != "data"

    @property
    def of_scan(self) -> bool:
        return self.rank == "data"

    @property
    def reads(self) -> Sequence[str]:
        by_example = ["excess_above"] if self.rank == "example" else []
        return ("logprob", "reference_logprob", *by_example)

    @staticmethod
    def _excess(columns: Columns) -> Column:
        return columns["reference_logprob"] - columns["logprob"]

    def resolve(self, step: Step) -> "Rho":
        if self.rank == "example":
            return self
        return replace(self, _threshold=step.tokens.quantile(self._excess, 1 - self.keep))

    def __call__(self, columns: Columns) -> Column:
        if self.rank == "example":
            return (columns["excess_above"] < self.keep) * ones(columns["excess_above"])
        excess = self._excess(columns)
        return (excess >= from_step(self._threshold)) * ones(excess)


@entry
@dataclass(frozen=True)
class Tail(Objective):
    """0 on the share `drop` of a step's examples whose mean nll fell most below the base model's.

    Only such as lie below it, by more than rounding, so that nothing is dropped in a first step.
    arXiv 2608.25756.
    """

    name, formula, of_step = "tail", "0 where the example's nll fell most", True
    reads = ("base_logprob", "nll_fall")
    drop: float = 0.1
    _threshold: float = field(default=math.nan, repr=False)

    def __post_init__(self) -> None:
        require(0 < self.drop < 1, f"tail: drop is between 0 and 1, found {self.drop:g}")

    def resolve(self, step: Step) -> "Tail":
        most = step.examples.quantile(lambda columns: columns["nll_fall"], 1 - self.drop)
        return replace(self, _threshold=max(most, LEAST_FALL))

    def __call__(self, columns: Columns) -> Column:
        return (columns["nll_fall"] <= from_step(self._threshold)) * ones(columns["nll_fall"])
