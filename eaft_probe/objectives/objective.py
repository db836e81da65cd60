"""What an objective is: a pure function of columns. Some must see the whole step first."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol

WEIGHTS = "weights"  # a column of a batch, made by whoever prepared the data
Column = Any  # (N,) NumPy array or tensor: gates use only what both can do
Columns = Mapping[str, Column]


class Population(Protocol):
    """Tokens or examples of a step, wherever they lie: on ranks, in micro-batches, in parts."""

    def mean(self, of: Callable[[Columns], Column]) -> float: ...

    def quantile(self, of: Callable[[Columns], Column], at: float) -> float: ...


@dataclass(frozen=True)
class Step:
    """What is trained in one optimizer step. For a figure or `of_scan`, the whole scan."""

    tokens: Population  # with the columns that the objective reads
    examples: Population  # with `mean_nll`, and of a base scan `base_mean_nll`, `nll_fall`


@dataclass(frozen=True)
class Anchor:
    """The term β · KL that is added to the gated loss. Forward is KL(reference ‖ model)."""

    beta: float
    direction: Literal["forward", "reverse"]


@dataclass(frozen=True)
class Objective(ABC):
    """Called with columns (N,), gives gates (N,) ≥ 0. Fields beginning with `_` are the step's."""

    name: ClassVar[str]
    formula: ClassVar[str]
    authors_lr: ClassVar[float | None] = None  # learning rate of its source, where it is another

    @property
    def of_step(self) -> bool:
        """Whether `resolve` must see each step before the first call."""
        return False

    @property
    def of_scan(self) -> bool:
        """Whether `resolve` must see the whole finished scan, once."""
        return False

    @property
    def is_resolved(self) -> bool:
        """Whether `resolve` has filled in what it takes from a step or scan, if anything."""
        taken = (getattr(self, f.name) for f in fields(self) if f.name.startswith("_"))
        return not any(isinstance(value, float) and math.isnan(value) for value in taken)

    @property
    def reads(self) -> Sequence[str]:
        """The columns it needs, and no others."""
        return ("prob",)

    @property
    def anchor(self) -> Anchor | None:
        return None

    @abstractmethod
    def __call__(self, columns: Columns) -> Column:
        """(N,) gates, float32."""

    def resolve(self, step: Step) -> "Objective":
        """The objective with what it takes from the whole step filled in."""
        return self

    def within(self, vocab_size: int) -> "Objective":
        """The objective for a model with that many tokens."""
        return self

    def __str__(self) -> str:
        """The name with the fields that are not at their defaults."""
        shown = [
            f"{f.name}={getattr(self, f.name):g}" if f.type is float else f"{f.name}={value}"
            for f in fields(self)
            if not f.name.startswith("_") and (value := getattr(self, f.name)) != f.default
        ]
        return " ".join([self.name, *shown])


@dataclass(frozen=True)
class Weighted(Objective):
    """An objective whose gates are multiplied by the `weights` that the data bring."""

    gated: Objective

    @property
    def reads(self) -> Sequence[str]:
        return (*self.gated.reads, WEIGHTS)

    @property
    def anchor(self) -> Anchor | None:
        return self.gated.anchor

    def __call__(self, columns: Columns) -> Column:
        return self.gated(columns) * columns[WEIGHTS]

    def within(self, vocab_size: int) -> "Weighted":
        return Weighted(self.gated.within(vocab_size))
