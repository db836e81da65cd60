"""Gates that see the model's entropy, and the gate of plain cross-entropy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from eaft_probe.columns.conflicts import ENTROPY_BELOW, PROB_BELOW, ConflictRule
from eaft_probe.objectives.gates.entry import entry, from_step, ones, require
from eaft_probe.objectives.objective import Column, Columns, Objective, Step


@entry
@dataclass(frozen=True)
class Sft(Objective):
    """Plain cross-entropy."""

    name, formula = "sft", "1"

    def __call__(self, columns: Columns) -> Column:
        return ones(columns["prob"])


@entry
@dataclass(frozen=True)
class Eaft(Objective):
    """f(H_top-k / ln k) with a power, a sigmoid or a threshold as f. arXiv 2601.02151, Eq. 2–4.

    `compat` divides the entropy as other programs do: LLaMA-Factory by 3.0, axolotl by nothing,
    so that its gates reach 3.0.
    """

    name, formula = "eaft", "f(H_topk / ln k)"
    gate: Literal["power", "sigmoid", "mask"] = "power"
    alpha: float = 1.0
    sharpness: float = 30.0
    center: float = 0.17
    k: int = 20
    entropy: Literal["top", "full"] = "top"
    compat: Literal["paper", "llamafactory", "axolotl"] = "paper"
    _vocab: int = field(default=10**9, repr=False)

    def __post_init__(self) -> None:
        require(self.k >= 2, f"eaft: k is at least 2 (ln 1 = 0), found {self.k}")
        require(self.alpha >= 0, f"eaft: alpha is at least 0, found {self.alpha:g}")
        theirs = (self.gate, self.entropy) == ("power", "top")
        theirs = theirs and (self.k == 20 or self.compat == "axolotl")
        require(
            self.compat == "paper" or theirs,
            f"eaft: compat={self.compat} fixes gate, entropy and k; leave them out, or leave "
            f"compat out",
        )

    @property
    def reads(self) -> Sequence[str]:
        return ("entropy" if self.entropy == "full" else f"entropy_top{self.k}",)

    def within(self, vocab_size: int) -> "Eaft":
        return replace(self, _vocab=vocab_size)

    def __call__(self, columns: Columns) -> Column:
        largest = math.log(min(self.k, self._vocab))  # nats
        unit = {"paper": largest, "llamafactory": 3.0, "axolotl": 1.0}[self.compat]
        h = (columns[self.reads[0]] / unit).clip(0, 1 if self.compat == "paper" else None)
        if self.gate == "power":
            return h**self.alpha
        if self.gate == "mask":
            return (h > self.center) * ones(h)
        exponent = (-self.sharpness * (h - self.center)).clip(-80, 80)  # e^89 is float32's end
        return 1 / (1 + math.e**exponent)


@entry
@dataclass(frozen=True)
class MaskedSft(Objective):
    """0 on confident conflicts, 1 elsewhere. arXiv 2601.02151, section 3.2.

    The conflicts of the model as it is now, or those of a finished scan under that scan's rule.
    """

    name, formula = "masked-sft", "0 on confident conflicts, else 1"
    entropy_below: float = ENTROPY_BELOW
    prob_below: float = PROB_BELOW
    conflicts: Literal["live", "scan"] = "live"

    def __post_init__(self) -> None:
        live = (self.entropy_below, self.prob_below) == (ENTROPY_BELOW, PROB_BELOW)
        require(
            self.conflicts == "live" or live,
            "masked-sft: the rule of the scan gives the thresholds; leave entropy_below and "
            "prob_below out, or change the rule with `eaft-probe flag`",
        )

    @property
    def reads(self) -> Sequence[str]:
        return ("entropy", "prob") if self.conflicts == "live" else ("base_conflict",)

    def __call__(self, columns: Columns) -> Column:
        if self.conflicts == "scan":
            return 1 - columns["base_conflict"]
        rule = ConflictRule(self.entropy_below, self.prob_below)
        return ~rule(columns) * ones(columns["prob"])


@entry
@dataclass(frozen=True)
class Idft(Objective):
    """p^γ, γ = 1 + λ (e^(−φ/β) within least..most − 1), φ = ln p + H. arXiv 2602.12222.

    `detach`: all is the paper's text; gamma is the program that was released with it, whose
    −p^γ ln p has a gradient in p^γ as well: p^γ (1 − γ nll), negative where nll > 1 / γ.
    """

    name, formula = "idft", "p^γ, γ from ln p + H"
    reads = ("logprob", "entropy")
    beta: float = 1.0
    least: float = 0.1
    most: float = 2.0
    lam: float = 1.0
    detach: Literal["all", "gamma"] = "all"

    def __post_init__(self) -> None:
        require(self.beta > 0, f"idft: beta is above 0, found {self.beta:g}")
        require(
            self.least <= self.most,
            f"idft: least is at most most, found {self.least:g} and {self.most:g}",
        )

    def __call__(self, columns: Columns) -> Column:
        logprob = columns["logprob"]
        exponent = (-(logprob + columns["entropy"]) / self.beta).clip(-80, 80)
        gamma = 1 + self.lam * ((math.e**exponent).clip(self.least, self.most) - 1)
        gate = math.e ** (gamma * logprob)
        return gate if self.detach == "all" else gate * (1 + gamma * logprob)


@entry
@dataclass(frozen=True)
class Mile(Objective):
    """c (1 + H)^γ with c = 1 / mean over the step. arXiv 2310.19531."""

    name, formula, of_step = "mile", "c (1 + H)^γ, mean 1", True
    reads = ("entropy",)
    gamma: float = 1.0
    _mean: float = field(default=math.nan, repr=False)

    def _raw(self, columns: Columns) -> Column:
        return (1 + columns["entropy"]) ** self.gamma

    def resolve(self, step: Step) -> "Mile":
        return replace(self, _mean=step.tokens.mean(self._raw))

    def __call__(self, columns: Columns) -> Column:
        return self._raw(columns) / from_step(self._mean)
