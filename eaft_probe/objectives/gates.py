"""Columns → gate: the OBJECTIVES that a run can be trained with and a figure drawn for.

An objective is a pure function of columns with its parameters as fields; the loss is Σ gate · nll
/ N and the gate is detached, so the gradient in the logits is gate · (P − onehot). Only operators
and methods that NumPy arrays and tensors share are used, so this file imports no torch.
Notation: p the label's probability, H the entropy in nats, N the trained tokens of a step.
Formulas and defaults are those of the papers named in each docstring.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Literal

from eaft_probe.columns.conflicts import ENTROPY_BELOW, PROB_BELOW, ConflictRule
from eaft_probe.errors import BadInput
from eaft_probe.objectives.objective import Anchor, Columns, Objective, Step
from eaft_probe.registry import Registry

OBJECTIVES = Registry[type[Objective]]("objective")


def _entry(kind: type[Objective]) -> type[Objective]:
    return OBJECTIVES.add(kind.name, kind)


def objective(name: str, given: Mapping[str, Any] | None = None) -> Objective:
    """The objective of that name with its fields set. Raises `UnknownName` and `BadInput`.

    >>> objective("qlog", {"q": "0.25"})
    Qlog(q=0.25)
    """
    from pydantic import TypeAdapter, ValidationError

    kind, given = OBJECTIVES[name], given or {}
    known = settable(kind)
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise BadInput(f"objective {name!r} has no field {key!r}{hint}; "
                           f"it has: {', '.join(known) or 'none'}")  # fmt: skip
    try:
        made: Objective = TypeAdapter(kind).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = f" {first['loc'][0]}" if first["loc"] else ""
        raise BadInput(f"objective {name!r}{where}: {first['msg']}") from error
    for key in known:
        value = getattr(made, key)
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            raise BadInput(f"objective {name!r}: {key} is a finite number from 0, found {value:g}")
    return made


def settable(kind: type[Objective]) -> list[str]:
    """The names that `--set` takes."""
    return [f.name for f in fields(kind) if not f.name.startswith("_")]


def _ones(column: Any) -> Any:
    return column * 0 + 1


def _frozen(value: float) -> float:
    """What `resolve` filled in."""
    assert not math.isnan(value), "resolve the objective on its step before calling it"
    return value


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise BadInput(message)


# --- every token the same, or by the model's entropy ---


@_entry
@dataclass(frozen=True)
class Sft(Objective):
    """Plain cross-entropy."""

    name, formula = "sft", "1"

    def __call__(self, columns: Columns) -> Any:
        return _ones(columns["prob"])


@_entry
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
        _require(self.k >= 2, f"eaft: k is at least 2 (ln 1 = 0), found {self.k}")
        _require(self.alpha >= 0, f"eaft: alpha is at least 0, found {self.alpha:g}")
        theirs = self.gate == "power" and self.entropy == "top"
        theirs = theirs and (self.k == 20 or self.compat == "axolotl")
        _require(self.compat == "paper" or theirs,
                 f"eaft: {self.compat} knows no gate, entropy or k but its own; leave them or "
                 f"compat out")  # fmt: skip

    @property
    def reads(self) -> Sequence[str]:
        return ("entropy" if self.entropy == "full" else f"entropy_top{self.k}",)

    def within(self, vocab_size: int) -> "Eaft":
        return replace(self, _vocab=vocab_size)

    @property
    def _unit(self) -> float:
        """The entropy that makes the gate 1, nats."""
        most = math.log(min(self.k, self._vocab))
        return {"paper": most, "llamafactory": 3.0, "axolotl": 1.0}[self.compat]

    def __call__(self, columns: Columns) -> Any:
        most = 1 if self.compat == "paper" else None
        h = (columns[self.reads[0]] / self._unit).clip(0, most)
        if self.gate == "power":
            return h**self.alpha
        if self.gate == "mask":
            return (h > self.center) * _ones(h)
        exponent = (-self.sharpness * (h - self.center)).clip(-80, 80)  # e^89 is float32's end
        return 1 / (1 + math.e**exponent)


@_entry
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
        _require(self.conflicts == "live" or live,
                 "masked-sft: a scan brings its own rule; `eaft-probe flag` gives it another"
                 )  # fmt: skip

    @property
    def reads(self) -> Sequence[str]:
        return ("entropy", "prob") if self.conflicts == "live" else ("base_conflict",)

    def __call__(self, columns: Columns) -> Any:
        if self.conflicts == "scan":
            return 1 - columns["base_conflict"]
        conflict = ConflictRule(self.entropy_below, self.prob_below)(columns)
        return ~conflict * _ones(columns["prob"])


@_entry
@dataclass(frozen=True)
class Mile(Objective):
    """c (1 + H)^γ with c = 1 / mean over the step. arXiv 2310.19531."""

    name, formula, of_step = "mile", "c (1 + H)^γ, mean 1", True
    gamma: float = 1.0
    _mean: float = field(default=math.nan, repr=False)

    @property
    def reads(self) -> Sequence[str]:
        return ("entropy",)

    def _raw(self, columns: Columns) -> Any:
        return (1 + columns["entropy"]) ** self.gamma

    def resolve(self, step: Step) -> "Mile":
        return replace(self, _mean=step.tokens.mean(self._raw))

    def __call__(self, columns: Columns) -> Any:
        return self._raw(columns) / _frozen(self._mean)


# --- by the label's probability ---


@_entry
@dataclass(frozen=True)
class Dft(Objective):
    """arXiv 2508.05629."""

    name, formula, authors_lr = "dft", "p", 5e-5

    def __call__(self, columns: Columns) -> Any:
        return columns["prob"]


@_entry
@dataclass(frozen=True)
class Qlog(Objective):
    """The gradient of (1 − p^q) / q. arXiv 2510.00526."""

    name, formula = "qlog", "p^q"
    q: float = 0.5

    def __call__(self, columns: Columns) -> Any:
        return columns["prob"] ** self.q


@_entry
@dataclass(frozen=True)
class Deft(Objective):
    """arXiv 2602.11424."""

    name, formula, authors_lr = "deft", "p^(ΣP²)", 5e-5

    @property
    def reads(self) -> Sequence[str]:
        return ("prob", "concentration")

    def __call__(self, columns: Columns) -> Any:
        return columns["prob"] ** columns["concentration"]


@_entry
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

    def __call__(self, columns: Columns) -> Any:
        p, least = columns["prob"], self.floor * _frozen(self._mean)
        return p ** (least + (1 - least) * p / (2 - p)).clip(1e-3, 1)


@_entry
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
        _require(self.tau == "auto" or self.tau > 0, f"talr: tau is above 0, found {self.tau}")

    def resolve(self, step: Step) -> "Talr":
        if self.tau != "auto":
            return replace(self, _tau=self.tau)
        middle = step.examples.quantile(lambda columns: columns["mean_nll"], 0.5)
        return replace(self, _tau=max(middle, 1e-6))

    def __call__(self, columns: Columns) -> Any:
        return (columns["prob"] ** (1 / _frozen(self._tau))).clip(self.floor, None)


@_entry
@dataclass(frozen=True)
class Focal(Objective):
    """arXiv 1708.02002."""

    name, formula = "focal", "(1 − p)^γ"
    gamma: float = 1.0

    def __call__(self, columns: Columns) -> Any:
        return (1 - columns["prob"]) ** self.gamma


@_entry
@dataclass(frozen=True)
class Profit(Objective):
    """arXiv 2601.09195."""

    name, formula = "profit", "1 where p ≥ threshold"
    threshold: float = 0.1

    def __call__(self, columns: Columns) -> Any:
        return (columns["prob"] >= self.threshold) * _ones(columns["prob"])


# --- by a finished scan under the base or another model ---


@_entry
@dataclass(frozen=True)
class Stm(Objective):
    """arXiv 2501.14315; the threshold is a perplexity of 2.5."""

    name, formula = "stm", "1 where base p ≥ threshold"
    threshold: float = 0.4

    @property
    def reads(self) -> Sequence[str]:
        return ("base_prob",)

    def __call__(self, columns: Columns) -> Any:
        return (columns["base_prob"] >= self.threshold) * _ones(columns["base_prob"])


@_entry
@dataclass(frozen=True)
class Flow(Objective):
    """exp(−f / τ), f the base model's mean nll of the example, τ the median of all examples of the
    scan. arXiv 2502.02797."""

    name, formula, of_scan = "flow", "exp(−base mean nll / median)", True
    normalize: Literal["none", "mean1"] = "none"
    _tau: float = field(default=math.nan, repr=False)
    _mean: float = field(default=1.0, repr=False)

    @property
    def reads(self) -> Sequence[str]:
        return ("base_mean_nll",)

    def resolve(self, step: Step) -> "Flow":
        middle = step.examples.quantile(lambda columns: columns["base_mean_nll"], 0.5)
        frozen = replace(self, _tau=max(middle, 1e-6))
        if self.normalize == "none":
            return frozen
        return replace(frozen, _mean=step.examples.mean(frozen))

    def __call__(self, columns: Columns) -> Any:
        return math.e ** (-columns["base_mean_nll"] / _frozen(self._tau)) / self._mean


@_entry
@dataclass(frozen=True)
class Rho(Objective):
    """1 for the share `keep` of tokens with the largest nll − reference nll, ties kept.

    arXiv 2404.07965.
    """

    name, formula, of_step = "rho", "1 for the largest nll − reference nll", True
    keep: float = 0.6
    _threshold: float = field(default=math.nan, repr=False)

    def __post_init__(self) -> None:
        _require(0 < self.keep <= 1, f"rho: keep is above 0 and at most 1, found {self.keep:g}")

    @property
    def reads(self) -> Sequence[str]:
        return ("logprob", "reference_logprob")

    @staticmethod
    def _excess(columns: Columns) -> Any:
        return columns["reference_logprob"] - columns["logprob"]

    def resolve(self, step: Step) -> "Rho":
        return replace(self, _threshold=step.tokens.quantile(self._excess, 1 - self.keep))

    def __call__(self, columns: Columns) -> Any:
        excess = self._excess(columns)
        return (excess >= _frozen(self._threshold)) * _ones(excess)


# --- with a pull towards a reference model ---


@_entry
@dataclass(frozen=True)
class SftKl(Objective):
    """Plain cross-entropy + β · KL to the reference."""

    name, formula = "sft-kl", "1, with anchor β · KL"
    beta: float = 0.5
    direction: Literal["forward", "reverse"] = "forward"

    @property
    def anchor(self) -> Anchor:
        return Anchor(self.beta, self.direction)

    def __call__(self, columns: Columns) -> Any:
        return _ones(columns["prob"])


@_entry
@dataclass(frozen=True)
class Asft(Objective):
    """arXiv 2509.23753."""

    name, formula = "asft", "p, with anchor β · KL"
    beta: float = 0.05
    direction: Literal["forward", "reverse"] = "forward"

    @property
    def anchor(self) -> Anchor:
        return Anchor(self.beta, self.direction)

    def __call__(self, columns: Columns) -> Any:
        return columns["prob"]
