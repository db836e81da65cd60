"""Measured figures with their intervals, and the table that shows those of one claim."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from eaft_probe.analysis.rank_correlation import student

UNKNOWN = "–"
SHARE = (0.0, 1.0)


@dataclass(frozen=True)
class Finding:
    """One cell of a claim's table; `low` and `high` are its 95 % interval."""

    claim: int
    row: str
    column: str
    value: float
    low: float
    high: float
    unit: str = ""  # "%": shares; "×": ratios; else what stands in the column's title
    seeds: int = 0  # that gave a figure; 0 where the interval is not over seeds

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return UNKNOWN
        if math.isnan(self.low) and not self.seeds:
            return self._shown(self.value)  # it was measured once
        few = {1: ", 1 seed", 2: ", 2 seeds"}.get(self.seeds, "")
        return (
            f"{self._shown(self.value)} ({self._shown(self.low)} to {self._shown(self.high)}{few})"
        )

    def _shown(self, value: float) -> str:
        if not math.isfinite(value):
            return "∞" if value == math.inf else UNKNOWN
        return f"{100 * value:.2f} %" if self.unit == "%" else f"{value:.3f}"


def over_seeds(
    claim: int,
    row: str,
    column: str,
    values: Sequence[float],
    unit: str = "",
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Finding:
    """The mean over seeds, and its interval by Student's t as far as the figure can go.

    A ratio's mean is geometric. The t is right within 1 % at three seeds. NaN is left out.
    """
    found = np.array([v for v in values if math.isfinite(v)], float)
    low, mean, high = _student(np.log(found) if unit == "×" else found).tolist()
    if unit == "×":
        low, mean, high = math.exp(low), math.exp(mean), math.exp(high)
    low, high = max(low, within[0]), min(high, within[1])
    return Finding(claim, row, column, mean, low, high, unit, len(found))


def _student(values: np.ndarray) -> np.ndarray:
    """(low, mean, high); NaN around a single value, everywhere without any."""
    if len(values) < 2:
        return np.array([np.nan, values[0] if len(values) else np.nan, np.nan])
    freedom = np.array([len(values) - 1.0])
    half = float(student(freedom)[0]) * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean() + np.array([-half, 0.0, half])


def table(findings: Iterable[Finding], paper: dict[str, str]) -> str:
    """One claim in markdown, a last column for what the paper has in its rows."""
    cells = {(f.row, f.column): str(f) for f in findings}
    rows = dict.fromkeys(row for row, _ in cells)
    columns = list(dict.fromkeys(column for _, column in cells))
    head = ["", *columns, *(["the paper"] if paper else [])]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        theirs = [paper.get(row, UNKNOWN)] if paper else []
        lines.append([row, *(cells.get((row, c), UNKNOWN) for c in columns), *theirs])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
