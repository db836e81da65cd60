"""The whole of a scan in numbers: counted over its tokens, or from the totals that it kept.

    scan.keeps_all ── yes ──▸ OfTokens: SQL over the parts, planes, exact quantiles
                    └─ no ──▸ OfTotals: `totals.parquet`, see `partial_aggregates.py`

Tables, figures and the report ask here, so that they need not know which it was.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from eaft_probe.analysis import histogram2d
from eaft_probe.analysis.count_queries import MOST_VALUES, Counts
from eaft_probe.analysis.histogram2d import (
    CELLS,
    ENTROPY_BINS,
    ENTROPY_STEP,
    PROB_BINS,
    PROB_STEP,
    Plane,
)
from eaft_probe.analysis.partial_aggregates import (
    MANY,
    SIDES,
    columns_of,
    require_sound,
    spread,
    sums_of,
)
from eaft_probe.analysis.positions import BINS, READS, SHAPES, sums_by_position
from eaft_probe.columns.quantiles import UPPER, quantiles_within
from eaft_probe.errors import MissingColumn, ScanError, one_line
from eaft_probe.scans.part_writer import TOTALS
from eaft_probe.scans.scan import Scan

Arrays = dict[str, NDArray[Any]]
# A token's cell in the plane, for DuckDB.
CELL = (
    f"CAST(least(floor(entropy / {ENTROPY_STEP}), {ENTROPY_BINS - 1}) * {PROB_BINS} "
    f"+ least(floor(prob / {PROB_STEP}), {PROB_BINS - 1}) AS INTEGER)"
)


class Overall(NamedTuple):
    tokens: int
    conflicts: int
    mean_nll: float  # nats
    mean_entropy: float  # nats


class Counted(Protocol):
    """What can be asked of the whole of a scan."""

    def overall(self) -> Overall: ...
    def conflicts(self) -> int: ...
    def agreeing(self) -> int:
        """Tokens of rank 0. Raises `MissingColumn`."""

    def examples_with_conflicts(self) -> int: ...
    def roles(self) -> list[tuple[str, int, int]]: ...
    def classes(self) -> list[tuple[str, int, int]]: ...
    def pairs(self, most: int) -> list[tuple[str, str, int, float, float]]: ...
    def pair_kinds(self) -> int: ...
    def kept_columns(self) -> list[str]:
        """The pass-through columns with few enough values to group by."""

    def kept(self, name: str) -> list[tuple[str | None, int, int]]: ...
    def quantiles(self, column: str, at: Sequence[float]) -> list[float]: ...
    def plane(self) -> Plane: ...
    def conflict_plane(self) -> Plane: ...
    def by_position(self) -> Arrays:
        """What `positions.sums_by_position` gives."""


def counted(scan: Scan) -> Counted:
    return OfTokens(scan) if scan.keeps_all else OfTotals(scan)


class OfTokens(Counts):
    """Out of core: memory does not grow with the scan."""

    def __init__(self, scan: Scan) -> None:
        super().__init__(scan.rows, scan.manifest["special_tokens"], scan.example_key)
        self.scan = scan

    def overall(self) -> Overall:
        (totals,) = self.rows(
            "SELECT count(*), count(*) FILTER (conflict), avg(-CAST(logprob AS DOUBLE)), "
            "avg(CAST(entropy AS DOUBLE)) FROM tokens"
        )
        return Overall(*totals)

    def conflicts(self) -> int:
        return int(self.rows("SELECT count(*) FROM conflicts")[0][0])

    def agreeing(self) -> int:
        if "rank" not in self.scan.columns:
            raise MissingColumn(f"{self.scan.path} has no column 'rank'")
        return int(self.rows("SELECT count(*) FILTER (rank = 0) FROM tokens")[0][0])

    def kept_columns(self) -> list[str]:
        kept = self.scan.manifest["config"]["keep"]
        return [name for name in kept if 0 < self.values(name) <= MOST_VALUES]

    def quantiles(self, column: str, at: Sequence[float]) -> list[float]:
        return self.scan.quantiles(column, at)

    def plane(self) -> Plane:
        return histogram2d.histogram(self.scan)

    def conflict_plane(self) -> Plane:
        counts = np.zeros(CELLS, np.int64)
        for cell, count in self.rows(f"SELECT {CELL}, count(*) FROM conflicts GROUP BY 1"):
            counts[cell] = count
        return Plane(counts.reshape(ENTROPY_BINS, PROB_BINS))

    def by_position(self) -> Arrays:
        rule = self.scan.rule
        return sums_by_position(self.scan.token_arrays(sorted({*READS, *rule.reads})), rule)


class OfTotals:
    """From the totals; see there which are not exact, and by how much.

    Raises `ScanError` where they are not those of the scan's tokens.
    """

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        try:
            self.columns, self.sums = columns_of(scan.totals), sums_of(scan.totals)
            require_sound(self.sums, len(self.columns), scan.manifest["counts"]["trained_tokens"])
        except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
            raise ScanError(f"{scan.path / TOTALS} is damaged: {one_line(error)}") from error
        keys, self.cells = self.sums["cell"]  # (n, 1 + columns)
        cell, self.sides = np.divmod(np.array(keys, np.int64), SIDES)
        self.cell = cell % CELLS

    def overall(self) -> Overall:
        tokens = int(self.cells[:, 0].sum())
        nll, entropy = -self._total("logprob") / tokens, self._total("entropy") / tokens
        return Overall(tokens, self.conflicts(), nll, entropy)

    def conflicts(self) -> int:
        return int(self.cells[self._conflict, 0].sum())

    def agreeing(self) -> int:
        return int(self.cells[self.sides & 1 == 1, 0].sum())

    def examples_with_conflicts(self) -> int:
        return self._named("examples_with_conflicts")

    def roles(self) -> list[tuple[str, int, int]]:
        return self._counts("role")

    def classes(self) -> list[tuple[str, int, int]]:
        return self._counts("class")

    def pairs(self, most: int) -> list[tuple[str, str, int, float, float]]:
        pairs = [(*json.loads(key), *row) for key, row in self._rows("pair")]
        pairs.sort(key=lambda r: (-r[2], r[0], r[1]))
        return [(a, b, round(n), p / n, q / n) for a, b, n, p, q in pairs[:most]]

    def pair_kinds(self) -> int:
        return len(self._rows("pair"))

    @property
    def pairs_too_low(self) -> int:
        """By how many conflicts a pair's count may be too low."""
        return self._named("pairs_too_low")

    def kept_columns(self) -> list[str]:
        names = self.scan.manifest["config"]["keep"]
        values = {n: sum(value is not None for value, *_ in self.kept(n)) for n in names}
        return [n for n in names if 0 < values[n] <= MOST_VALUES]

    def kept(self, name: str) -> list[tuple[str | None, int, int]]:
        counts = self._counts(f"kept:{name}")
        if any(key == MANY for key, *_ in counts):
            return []
        groups = [(json.loads(key), n, c) for key, n, c in counts]
        return sorted(groups, key=lambda r: (r[0] is None, r[0]))

    def quantiles(self, column: str, at: Sequence[float]) -> list[float]:
        if f"bits:{column}" not in self.sums:
            raise MissingColumn(f"{self.scan.path} has no quantiles of {column!r}")
        upper = spread(*self.sums[f"bits:{column}"], UPPER)[:, 0].astype(np.int64)
        return quantiles_within(upper, at)

    def plane(self) -> Plane:
        return self._plane(self.sides >= 0)

    def conflict_plane(self) -> Plane:
        return self._plane(self._conflict)

    def by_position(self) -> Arrays:
        bins = np.split(spread(*self.sums["position"], BINS), [1, 4], axis=1)
        return {n: b.reshape(shape) for (n, shape), b in zip(SHAPES.items(), bins, strict=True)}

    def arrays(self, names: Sequence[str]) -> Arrays:
        """The cells as if each were a token: means of columns, `conflict`, and `weight`, how many
        tokens it stands for. Raises `MissingColumn`."""
        weight = self.cells[:, 0]
        arrays: Arrays = {"weight": weight, "conflict": self._conflict}
        for i, name in enumerate(self.columns, 1):
            arrays[name] = (self.cells[:, i] / weight).astype(np.float32)
        missing = next((n for n in names if n not in arrays), None)
        if missing is not None:
            raise MissingColumn(
                f"{self.scan.path} has totals, which do not hold {missing!r}; "
                f"rescan with --keep-tokens all"
            )
        return {name: arrays[name] for name in names}

    @property
    def _conflict(self) -> NDArray[np.bool_]:
        """(n,) cells on the low side of both thresholds."""
        low: NDArray[np.bool_] = self.sides >> 1 == 0
        return low

    def _total(self, column: str) -> float:
        return float(self.cells[:, 1 + self.columns.index(column)].sum())

    def _named(self, key: str) -> int:
        return next((n for k, n in self._counts("scan") if k == key), 0)

    def _rows(self, table: str) -> list[tuple[str, list[float]]]:
        keys, values = self.sums.get(table, ([], np.zeros((0, 0))))
        return list(zip(keys, values.tolist(), strict=True))

    def _counts(self, table: str) -> list[tuple[Any, ...]]:
        return [(key, *map(int, values)) for key, values in self._rows(table)]

    def _plane(self, chosen: NDArray[np.bool_]) -> Plane:
        counts = np.bincount(self.cell[chosen], self.cells[chosen, 0], CELLS).astype(np.int64)
        return Plane(counts.reshape(ENTROPY_BINS, PROB_BINS))
