"""A finished scan as what objectives read: its columns, and the whole of it as one step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eaft_probe.analysis.aggregates import OfTotals
from eaft_probe.analysis.token_join import require_same_turns
from eaft_probe.columns.quantiles import quantiles
from eaft_probe.errors import BadInput, ScanError
from eaft_probe.objectives.objective import Columns, Objective
from eaft_probe.scans.keys import sortable
from eaft_probe.scans.scan import Scan

# Columns that come from a scan of the same tokens under another model. The scan itself is its own
# base: it was made under the model that would be trained.
OF_BASE = {
    "base_prob": "prob",
    "base_conflict": "conflict",
    "base_mean_nll": "example",
    "reference_logprob": "logprob",
}
OF_CELLS = {"base_prob": "prob", "base_conflict": "conflict"}  # what the means of a cell say


def token_columns(
    scan: Scan, names: Sequence[str], base: Scan | None = None
) -> Iterator[dict[str, NDArray[Any]]]:
    """The columns `names` and `weight`, how many tokens a row stands for, in constant memory.

    That is one; of a scan that has not kept all of its tokens the rows are the cells of its plane,
    with the means of their columns. Raises `MissingColumn`, `ScanError`, `BadInput`.
    """
    theirs = [n for n in names if n in OF_BASE]
    own = [n for n in names if n not in OF_BASE]
    if not scan.keeps_all:
        yield _cells(scan, own, theirs, base)
        return
    for columns in _tokens(scan, own, theirs, base):
        yield {**columns, "weight": np.ones(len(next(iter(columns.values()))))}


def _cells(
    scan: Scan, own: Sequence[str], theirs: Sequence[str], base: Scan | None
) -> dict[str, NDArray[Any]]:
    """The scan as its own base; another one's numbers cannot be told of a cell."""
    if base is not None:
        scan.require_all("an objective with --base-scan")
    names = {n: OF_CELLS.get(n, n) for n in (*own, *theirs)}
    found = OfTotals(scan).arrays([*names.values(), "weight"])
    return {n: found[name] for n, name in names.items()} | {"weight": found["weight"]}


def _tokens(
    scan: Scan, own: Sequence[str], theirs: Sequence[str], base: Scan | None
) -> Iterator[dict[str, NDArray[Any]]]:
    if "reference_logprob" in theirs and base is None:
        raise BadInput(
            "this objective compares with a reference model; give --base-scan DIR, "
            "a scan of the same data under it"
        )
    if theirs:
        _same_units(scan, base or scan)
    for index in range(len(scan.manifest["parts"])):
        if theirs:
            yield from _joined(scan, base or scan, own, theirs, index)
        else:
            yield from scan.token_arrays(own, index)


def _same_units(scan: Scan, base: Scan) -> None:
    require_same_turns(scan, base)
    if [p["rows"] for p in scan.manifest["parts"]] != [p["rows"] for p in base.manifest["parts"]]:
        raise _other_tokens(scan, base)


def _other_tokens(scan: Scan, base: Scan) -> ScanError:
    return ScanError(f"{base.path} is no scan of the same tokens as {scan.path}, in the same units")


def _joined(
    scan: Scan, base: Scan, own: Sequence[str], theirs: Sequence[str], index: int
) -> Iterator[dict[str, NDArray[Any]]]:
    """One part with the base scan's columns beside its own."""
    place = (*scan.token_key, "token_id")
    sides = (sorted({*own, *place}), sorted({*(OF_BASE[n] for n in theirs), *place}))
    pieces = (s.token_arrays(c, index) for s, c in zip((scan, base), sides, strict=True))
    for mine, other in zip_longest(*pieces, fillvalue={}):  # not in step: other row groups
        if not (mine and other and all(np.array_equal(mine[p], other[p]) for p in place)):
            raise _other_tokens(scan, base)
        joined = {n: other[OF_BASE[n]] for n in theirs}
        if "base_conflict" in joined:
            joined["base_conflict"] = joined["base_conflict"].astype(np.float32)
        if "base_mean_nll" in joined:
            joined["base_mean_nll"] = _mean_nll(base, index, other)
        yield {n: mine[n] for n in own} | joined


def _mean_nll(scan: Scan, index: int, columns: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Each token's example's mean nll."""
    key = scan.example_key
    table = scan.example_part(index, [*key, "mean_nll"])
    means: NDArray[np.float32] = table["mean_nll"].to_numpy()
    return means[np.searchsorted(sortable(table, key), sortable(columns, key))]


@dataclass(frozen=True)
class Chunked:
    """A `Population` that is read piece by piece as often as needed."""

    chunks: Callable[[], Iterator[Columns]]
    cells_of: Scan | None = None  # whose rows are cells: their means have no quantiles

    def mean(self, of: Callable[[Columns], Any]) -> float:
        total = count = 0.0
        for columns in self.chunks():
            values = of(columns).astype(np.float64)
            total += float(values @ columns["weight"])
            count += float(columns["weight"].sum())
        return total / max(count, 1)

    def quantile(self, of: Callable[[Columns], Any], at: float) -> float:
        if self.cells_of is not None:
            self.cells_of.require_all("a quantile over the tokens")
        return quantiles(lambda: (of(columns) for columns in self.chunks()), [at])[0]


@dataclass(frozen=True)
class ScanStep:
    """The whole scan as the step of an objective that reads the columns `reads`."""

    scan: Scan
    base: Scan | None
    reads: tuple[str, ...]

    @property
    def tokens(self) -> Chunked:
        cells = None if self.scan.keeps_all else self.scan
        return Chunked(lambda: token_columns(self.scan, self.reads, self.base), cells)

    @property
    def examples(self) -> Chunked:
        return Chunked(self._examples)

    def _examples(self) -> Iterator[Columns]:
        base = self.base or self.scan
        self.scan.require_all("an objective that looks at whole examples")
        _same_units(self.scan, base)
        for index in range(len(self.scan.manifest["parts"])):
            means = [s.example_part(index, ["mean_nll"])[0] for s in (self.scan, base)]
            mine, theirs = (m.to_numpy() for m in means)
            yield {"mean_nll": mine, "base_mean_nll": theirs, "weight": np.ones(len(mine))}


def resolved(objective: Objective, scan: Scan, base: Scan | None) -> Objective:
    """The objective frozen for a figure: its step is the whole scan."""
    fitted = objective.within(int(scan.manifest["model"]["vocab_size"]))
    return fitted.resolve(ScanStep(scan, base, tuple(fitted.reads)))


def open_base(folder: str | Path | None) -> Scan | None:
    if folder is None:
        return None
    base = Scan.open(folder)
    base.require_all("--base-scan")
    return base
