"""The one-step frontier: what a step of one length along each objective's gradient gains and costs.

gain = fall of nll on held-out rows; cost = KL(base ‖ stepped) on the retained ones. As gain grows
with the length and KL with its square, objectives are compared by KL / gain², over that of sft:
the KL paid for the same gain.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas
import torch
from numpy.typing import NDArray

from eaft_probe.analysis.bootstrap import interval, resamples
from eaft_probe.errors import NonFinite
from eaft_probe.objectives.objective import Objective
from eaft_probe.progress import Progress
from eaft_probe.quantities import number
from eaft_probe.verbs.forecast.loaded import Loaded
from eaft_probe.verbs.forecast.passes import DIRECTIONS, Floats, Gradient, norm, sums_by_row

WANTED_KL = 1e-4  # nats, of a step of sft on the retained rows
WITHIN = 1.25  # a factor
FIRST_STEP, MOST_TRIES = 0.01, 8
UNSTABLE = 0.1  # relative change of a rate at half the length
FIGURES = ("gain", "retain_nll_change", "retain_kl", "exchange_rate")
NO_ANCHOR = "the anchor does nothing in a first step, from its own reference"
NO_TAIL = "nothing has fallen below the base in a first step, so it drops nothing"


@dataclass
class Frontier:
    """The steps along some objectives, and the measurements behind each."""

    loaded: Loaded
    seed: int
    kind: str  # of the step, one of DIRECTIONS
    start: Gradient = field(default_factory=dict)
    before: list[Floats] = field(default_factory=list)

    def __post_init__(self) -> None:
        own = dict(self.loaded.base.whole.named_parameters())  # a new adapter's are none of them
        self.start = {
            n: own[n].detach() if n in own else p.detach().clone()
            for n, p in self.loaded.parameters.items()
        }
        rows = (self.loaded.target, self.loaded.retain)
        self.before = [sums_by_row(self.loaded.model, r) for r in rows]

    def table(
        self,
        objectives: Sequence[Objective],
        gates: Mapping[str, Sequence[NDArray[np.float32]]],
        progress: Progress,
        length: float | None = None,
    ) -> tuple[pandas.DataFrame, float]:
        """A row for each objective, and the length of the step, which is found where none is given.
        `gates`: of each window, by the objective's text; the first objective is sft. Raises
        `NonFinite`."""
        direction, of = DIRECTIONS[self.kind], self.loaded
        progress.start("forecast", len(objectives))
        known: dict[bytes, tuple[Floats, Floats] | None] = {}
        found: list[tuple[Floats, Floats] | None] = []
        for objective in objectives:
            own = gates[str(objective)]
            key = b"".join(g.tobytes() for g in own)
            if key not in known:
                step = direction(of.model, of.parameters, of.step, own)
                if length is None:
                    length = self._length(step, str(objective))
                known[key] = self._measured(step, length, str(objective))
                del step  # else this one and the next are both in memory
            found.append(known[key])
            progress.advance(1, of.step.tokens)
        rows = self._rows(objectives, found)
        assert length is not None, "there is at least one objective"
        return pandas.DataFrame(rows).astype(dict.fromkeys(_names(), float)), length

    def _length(self, step: Gradient, name: str) -> float:
        """At which sft's KL is about WANTED_KL; after MOST_TRIES the next guess."""
        length = FIRST_STEP
        for _ in range(MOST_TRIES):
            sums = self._stepped(step, length, name)[1]
            kl = float(sums[:, 2].sum() / sums[:, 0].sum())
            if is_wanted(kl):
                break
            length *= float(np.clip(math.sqrt(WANTED_KL / max(kl, 1e-12)), 1 / 30, 30))
        return length

    def _measured(self, step: Gradient, length: float, name: str) -> tuple[Floats, Floats] | None:
        """(2, E, 3) and (2, R, 3) sums by row of a step of that length and of half of it; None
        where the gates leave nothing to step along."""
        if not norm(step) > 0:
            return None
        pairs = [self._stepped(step, share * length, name) for share in (1, 0.5)]
        return np.stack([e for e, _ in pairs]), np.stack([r for _, r in pairs])

    @torch.no_grad()
    def _stepped(self, step: Gradient, length: float, name: str) -> tuple[Floats, Floats]:
        """Sums by row behind the step; the weights are restored from their copy."""
        scale, model, parameters = -length / norm(step), self.loaded.model, self.loaded.parameters
        try:
            for n, parameter in parameters.items():
                parameter.copy_(self.start[n]).add_(step[n], alpha=scale)
            sums = (
                sums_by_row(model, self.loaded.target),
                sums_by_row(model, self.loaded.retain, self.loaded.base),
            )
        finally:
            for n, parameter in parameters.items():
                parameter.copy_(self.start[n])
        if not all(np.isfinite(s).all() for s in sums):
            raise NonFinite(
                f"the loss is not finite after a step of length {length:.3g} along {name}; check "
                f"the weights, or leave that objective out"
            )
        return sums

    # --- the table ---

    def _rows(
        self, objectives: Sequence[Objective], found: Sequence[tuple[Floats, Floats] | None]
    ) -> list[dict[str, Any]]:
        weights = [
            np.concatenate(list(resamples(len(s), self.seed))) for s in self.before
        ]  # the same draws for all
        once = [np.ones((1, len(s))) for s in self.before]
        drawn = [self._figures(f, weights) for f in found]
        values = [self._figures(f, once) for f in found]
        rows = []
        for objective, value, many in zip(objectives, values, drawn, strict=True):
            row: dict[str, Any] = {"objective": str(objective)}
            half = None
            if value is not None and many is not None:
                half = _rates(value[1], values[0], 1)[0]
                row |= _row(value[0], many[0], values[0], drawn[0])
            row |= {n: None for n in _names() if n not in row}
            row["note"] = _note(objective, row, half)
            rows.append(row)
        return rows

    def _figures(
        self, sums: tuple[Floats, Floats] | None, weights: Sequence[Floats]
    ) -> list[Floats] | None:
        """(n, 3) of each length: gain, change of retained nll, KL under n draws of the rows."""
        if sums is None:
            return None
        figures = []
        for eval_sums, retain_sums in zip(*sums, strict=True):
            gain = _mean(weights[0], self.before[0] - eval_sums, self.before[0], 1)
            change = _mean(weights[1], retain_sums - self.before[1], self.before[1], 1)
            kl = _mean(weights[1], retain_sums, self.before[1], 2)
            figures.append(np.stack([gain, change, kl], 1))
        return figures


def is_wanted(kl: float) -> bool:
    """Whether a step of sft has the KL that its length was chosen for."""
    return WANTED_KL / WITHIN <= kl <= WANTED_KL * WITHIN


def _mean(weights: Floats, values: Floats, counted: Floats, column: int) -> Floats:
    total: Floats = (weights @ values[:, column]) / (weights @ counted[:, 0])
    return total


def _rates(figures: Floats, sft: list[Floats] | None, length: int) -> Floats:
    """KL / gain² over that of sft at the same length."""
    if sft is None:
        return np.full(len(figures), np.nan)
    own = figures[:, 2] / figures[:, 0] ** 2
    rates: Floats = own / (sft[length][:, 2] / sft[length][:, 0] ** 2)
    return rates


def _row(
    value: Floats, many: Floats, sft: list[Floats] | None, sft_many: list[Floats] | None
) -> dict[str, float | None]:
    """Figures with their intervals; the rate is null where the gain's interval reaches 0."""
    row: dict[str, float | None] = {}
    for i, name in enumerate(FIGURES[:3]):
        row[name] = float(value[0, i])
        row[f"{name}_low"], row[f"{name}_high"] = interval(many[:, i])
    gains = (many[:, 0], *([sft_many[0][:, 0]] if sft_many is not None else []))
    if all(interval(g)[0] > 0 for g in gains) and sft is not None:
        row["exchange_rate"] = float(_rates(value, sft, 0)[0])
        low, high = interval(_rates(many, sft_many, 0))
        row["exchange_rate_low"], row["exchange_rate_high"] = low, high
    return row


def _names() -> list[str]:
    return [f"{n}{end}" for n in FIGURES for end in ("", "_low", "_high")]


def _note(objective: Objective, row: Mapping[str, Any], half: float | None) -> str:
    notes = []
    if row["gain"] is None:
        notes.append("its gates are 0 on all tokens of the step")
    elif row["exchange_rate"] is None:
        notes.append("no rate: the interval of the gain, or of that of sft, reaches 0")
    elif half is not None and abs(row["exchange_rate"] / half - 1) > UNSTABLE:
        notes.append(f"unstable: {half:.3g} at half the length")
    if objective.name == "sft" and not is_wanted(row["retain_kl"]):
        reached = f"a KL of {number(row['retain_kl'])} nats, not {WANTED_KL:g}"
        notes.append(f"{MOST_TRIES} lengths were tried, and it has {reached}")
    if objective.anchor is not None:
        notes.append(NO_ANCHOR)
    if objective.name == "tail":
        notes.append(NO_TAIL)
    return "; ".join(notes)
