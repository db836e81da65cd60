"""A finished scan as what objectives read: its columns, and the whole of it as one step."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eaft_probe.analysis.aggregates import OfTotals
from eaft_probe.analysis.token_join import require_same_turns
from eaft_probe.columns.quantiles import quantiles
from eaft_probe.errors import BadInput, ScanError
from eaft_probe.objectives.objective import Column, Columns, Objective, Step
from eaft_probe.scans.keys import sortable
from eaft_probe.scans.scan import Scan

# Columns that come from a scan of the same tokens under another model. The scan itself is its own
# base: it was made under the model that would be trained.
OF_BASE = {
    "base_prob": "prob",
    "base_conflict": "conflict",
    "base_mean_nll": "example",
    "base_logprob": "logprob",
    "reference_logprob": "logprob",
}
OF_CELLS = {"base_prob": "prob", "base_conflict": "conflict"}  # what a cell has the means of
Arrays = dict[str, NDArray[Any]]  # name → (N,)
Floats = NDArray[np.float64]


def means_by(example: NDArray[np.int64], values: Floats) -> Floats:
    """(E,) the mean of each example's values; `example` (N,) counts them from 0."""
    return np.bincount(example, values) / np.maximum(np.bincount(example), 1)


def nll_fall(columns: Arrays, example: NDArray[np.int64]) -> Floats:
    """(N,) mean nll of the token's example under the base, less that of now."""
    fall = columns["logprob"].astype(np.float64) - columns["base_logprob"]
    return means_by(example, fall)[example]


def excess_above(columns: Arrays, example: NDArray[np.int64]) -> Floats:
    """(N,) the share of the example's tokens with a larger nll − reference nll than this one."""
    excess = columns["reference_logprob"].astype(np.float64) - columns["logprob"]
    above: Floats = np.zeros(len(excess))
    order = np.lexsort((excess, example))
    for of_one in np.split(order, np.flatnonzero(np.diff(example[order])) + 1):
        not_above = np.searchsorted(excess[of_one], excess[of_one], "right")
        above[of_one] = (len(of_one) - not_above) / len(of_one)  # 1 - 4/5 would be below 1/5
    return above


# Columns that take a whole example, and what they are made of besides `logprob`.
OF_EXAMPLE = {"nll_fall": nll_fall, "excess_above": excess_above}
MADE_OF = {"nll_fall": "base_logprob", "excess_above": "reference_logprob"}
GIVEN = {*OF_BASE, *OF_EXAMPLE}  # what no statistic of a model's distribution is


def token_columns(scan: Scan, names: Sequence[str], base: Scan | None = None) -> Iterator[Arrays]:
    """The columns `names` and `weight`, how many tokens a row stands for, in constant memory.

    That is one token; where the scan has not kept all of its tokens, the rows are the cells of its
    histogram, with the means of their columns. Raises `MissingColumn`, `ScanError`, `BadInput`.
    """
    if made := [name for name in names if name in OF_EXAMPLE]:
        yield from _with_examples(scan, [n for n in names if n not in made], made, base)
        return
    own = [name for name in names if name not in OF_BASE]
    of_base = [name for name in names if name in OF_BASE]
    if not scan.keeps_all:
        yield _cells(scan, [*own, *of_base], base)
        return
    if "reference_logprob" in of_base and base is None:
        raise BadInput(
            "this objective compares with a reference model; give --base-scan DIR, "
            "a scan of the same data under it"
        )
    pieces = _joined(scan, base or scan, own, of_base) if of_base else scan.token_arrays(own)
    for columns in pieces:
        yield {**columns, "weight": np.ones(len(next(iter(columns.values()))))}


def _with_examples(
    scan: Scan, names: Sequence[str], made: Sequence[str], base: Scan | None
) -> Iterator[Arrays]:
    """All columns, a part at a time: an example may span two row groups."""
    scan.require_all("an objective that looks at whole examples")
    key = scan.example_key
    reads = sorted({*names, *(MADE_OF[n] for n in made), *key, "logprob"})
    pieces = token_columns(scan, reads, base)
    for part in scan.manifest["parts"]:
        columns, rows = list[Arrays](), 0
        while rows < part["rows"]:
            columns.append(next(pieces))
            rows += len(columns[-1]["weight"])
        if not columns:
            continue
        whole = {n: np.concatenate([c[n] for c in columns]) for n in columns[0]}
        example = np.unique(sortable(whole, key), return_inverse=True)[1]
        of_example = {n: OF_EXAMPLE[n](whole, example).astype(np.float32) for n in made}
        yield {**{n: whole[n] for n in names}, **of_example, "weight": whole["weight"]}


def by_example(pieces: Iterable[Arrays], key: Sequence[str]) -> Iterator[Arrays]:
    """The columns of one example after the other; an example may span two pieces.

    `key`: the columns, among those of the pieces, that tell examples apart.
    """
    rest: Arrays = {}
    for piece in pieces:
        joined = {n: np.concatenate([rest[n], c]) if rest else c for n, c in piece.items()}
        cuts = np.flatnonzero(np.diff(sortable(joined, key))) + 1
        bounds = [0, *cuts.tolist(), len(joined["example"])]
        *whole, rest = ({n: c[a:b] for n, c in joined.items()} for a, b in pairwise(bounds))
        yield from whole
    if rest and len(rest["example"]):
        yield rest


def _cells(scan: Scan, names: Sequence[str], base: Scan | None) -> Arrays:
    """The scan as its own base; a cell cannot have the numbers of another one."""
    if base is not None:
        scan.require_all("an objective with --base-scan")
    stored = {n: OF_CELLS.get(n, n) for n in names} | {"weight": "weight"}
    cells = OfTotals(scan).arrays([*stored.values()])
    return {name: cells[column] for name, column in stored.items()}


def _require_same_units(scan: Scan, base: Scan) -> None:
    require_same_turns(scan, base)
    if [p["rows"] for p in scan.manifest["parts"]] != [p["rows"] for p in base.manifest["parts"]]:
        raise _other_tokens(scan, base)


def _other_tokens(scan: Scan, base: Scan) -> ScanError:
    return ScanError(
        f"{scan.path} and {base.path} do not contain the same tokens in the same units; scan the "
        f"same data with the same settings"
    )


def _joined(scan: Scan, base: Scan, own: Sequence[str], of_base: Sequence[str]) -> Iterator[Arrays]:
    """The scan's `own` columns with those of the base scan."""
    _require_same_units(scan, base)
    key = (*scan.token_key, "token_id")
    sides = (sorted({*own, *key}), sorted({*(OF_BASE[n] for n in of_base), *key}))
    for part in range(len(scan.manifest["parts"])):
        pieces = (s.token_arrays(c, part) for s, c in zip((scan, base), sides, strict=True))
        for left, right in zip_longest(*pieces, fillvalue={}):  # not in step: other row groups
            if not (left and right and all(np.array_equal(left[k], right[k]) for k in key)):
                raise _other_tokens(scan, base)
            joined = {n: right[OF_BASE[n]] for n in of_base}
            if "base_conflict" in joined:
                joined["base_conflict"] = joined["base_conflict"].astype(np.float32)
            if "base_mean_nll" in joined:
                joined["base_mean_nll"] = _mean_nll(base, part, right)
            yield {n: left[n] for n in own} | joined


def _mean_nll(scan: Scan, index: int, columns: Arrays) -> NDArray[np.float32]:
    """The mean nll of each token's example."""
    key = scan.example_key
    table = scan.example_part(index, [*key, "mean_nll"])
    means: NDArray[np.float32] = table["mean_nll"].to_numpy()
    return means[np.searchsorted(sortable(table, key), sortable(columns, key))]


@dataclass(frozen=True)
class Chunked:
    """A `Population` that is read piece by piece as often as needed."""

    chunks: Callable[[], Iterator[Columns]]
    cells_of: Scan | None = None  # whose rows are cells: their means have no quantiles

    def mean(self, of: Callable[[Columns], Column]) -> float:
        total = count = 0.0
        for columns in self.chunks():
            total += float(of(columns).astype(np.float64) @ columns["weight"])
            count += float(columns["weight"].sum())
        return total / max(count, 1)

    def quantile(self, of: Callable[[Columns], Column], at: float) -> float:
        if self.cells_of is not None:
            self.cells_of.require_all("a quantile over the tokens")
        return quantiles(lambda: (of(columns) for columns in self.chunks()), [at])[0]


def scan_step(scan: Scan, base: Scan | None, reads: Sequence[str]) -> Step:
    """The whole scan as the step of an objective that reads the columns `reads`."""
    cells = None if scan.keeps_all else scan
    tokens = Chunked(lambda: token_columns(scan, reads, base), cells)
    return Step(tokens, Chunked(lambda: _examples(scan, base or scan)))


def _examples(scan: Scan, base: Scan) -> Iterator[Columns]:
    scan.require_all("an objective that looks at whole examples")
    _require_same_units(scan, base)
    for part in range(len(scan.manifest["parts"])):
        own, of_base = (s.example_part(part, ["mean_nll"])[0].to_numpy() for s in (scan, base))
        fall = of_base - own
        means = {"mean_nll": own, "base_mean_nll": of_base, "nll_fall": fall}
        yield {**means, "weight": np.ones(len(own))}


def resolved(objective: Objective, scan: Scan, base: Scan | None) -> Objective:
    """The objective frozen for a figure: its step is the whole scan."""
    fitted = objective.within(int(scan.manifest["model"]["vocab_size"]))
    return fitted.resolve(scan_step(scan, base, fitted.reads))


def open_base(folder: str | Path | None, what: str = "--base-scan") -> Scan | None:
    """The finished scan for `what`, which reads every token. Raises `ScanError`."""
    if folder is None:
        return None
    scan = Scan.open(folder)
    scan.require_all(what)
    return scan
