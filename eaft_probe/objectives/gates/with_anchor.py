"""Gates with an anchor: a pull towards a reference model."""

from dataclasses import dataclass
from typing import Literal

from eaft_probe.objectives.gates.entry import entry, ones
from eaft_probe.objectives.objective import Anchor, Column, Columns, Objective


@entry
@dataclass(frozen=True)
class SftKl(Objective):
    """Plain cross-entropy + β · KL to the reference."""

    name, formula = "sft-kl", "1, with anchor β · KL"
    beta: float = 0.5
    direction: Literal["forward", "reverse"] = "forward"

    @property
    def anchor(self) -> Anchor:
        return Anchor(self.beta, self.direction)

    def __call__(self, columns: Columns) -> Column:
        return ones(columns["prob"])


@entry
@dataclass(frozen=True)
class Asft(SftKl):
    """arXiv 2509.23753."""

    name, formula = "asft", "p, with anchor β · KL"
    beta: float = 0.05

    def __call__(self, columns: Columns) -> Column:
        return columns["prob"]
