"""The trained tokens of a finished scan, rendering by rendering, each with its gate."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eaft_probe.errors import BadInput, ScanError
from eaft_probe.objectives.gates import objective as objective_named
from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.scan_columns import (
    Arrays,
    by_example,
    open_base,
    resolved,
    token_columns,
)
from eaft_probe.scans.keys import named_place
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import ExportSettings

Gates = NDArray[np.float32]  # (N,) of scored tokens


@dataclass(frozen=True)
class Rendering:
    """A row as the model read it; under --turns each one of its turns."""

    example: int
    turn: int | None  # the only one trained here, under --turns each
    text: str
    messages: str  # as JSON
    length: int  # tokens that were read
    tokens: Arrays  # (N,) position, token_id, turn, char_start, char_end of the scored ones
    gates: Gates
    kept: NDArray[np.bool_]  # (N,) false where --masked leaves a conflict out


@dataclass(frozen=True)
class Gate:
    """What is asked to be trained of each token, from the columns of a finished scan."""

    scan: Scan
    masked: bool
    objective: Objective | None
    base: Scan | None

    @classmethod
    def of(cls, scan: Scan, settings: ExportSettings) -> "Gate":
        """Raises `BadInput` for an objective that is more than a weight for each token."""
        base = open_base(settings.base_scan)
        if settings.objective is None:
            return cls(scan, settings.masked, None, base)
        objective = objective_named(settings.objective, settings.set)
        if objective.anchor:
            raise BadInput(
                f"objective {objective.name!r} pulls towards a reference model, which no weight "
                f"says; train with `eaft-probe train --objective {objective.name}`"
            )
        return cls(scan, settings.masked, resolved(objective, scan, base), base)

    @property
    def reads(self) -> set[str]:
        return {*(self.objective.reads if self.objective else ()), "conflict"}

    def __call__(self, columns: Arrays) -> Gates:
        """(N,) gates, 0 where --masked leaves a conflict out; without an objective else 1."""
        gates = self.kept(columns).astype(np.float32)
        return gates * self.objective(columns) if self.objective else gates

    def kept(self, columns: Arrays) -> NDArray[np.bool_]:
        conflict: NDArray[np.bool_] = columns["conflict"].astype(np.bool_)
        return ~conflict if self.masked else np.ones_like(conflict)


PLACES = ("position", "token_id", "turn", "char_start", "char_end")


def renderings(scan: Scan, gate: Gate) -> Iterator[Rendering]:
    """All of a scan, in the order of the data; memory is that of a part.

    Raises `ScanError` where the tokens are not those of the examples.
    """
    key = scan.example_key
    names = sorted({*key, *PLACES, *gate.reads})
    tokens = by_example(token_columns(scan, names, gate.base), key)
    for part in range(len(scan.manifest["parts"])):
        columns = [*key, "text", "messages", "tokens"]
        for example in scan.example_part(part, columns).to_pylist():
            own = next(tokens, None)
            place = [example[name] for name in key]
            if own is None or [int(own[name][0]) for name in key] != place:
                raise ScanError(f"{scan.path} is damaged: {named_place(key, place)} has no token")
            yield Rendering(
                example["example"],
                example.get("turn"),
                example["text"] or "",
                example["messages"] or "",
                example["tokens"],
                {name: own[name] for name in PLACES},
                gate(own).astype(np.float32),
                gate.kept(own),
            )
