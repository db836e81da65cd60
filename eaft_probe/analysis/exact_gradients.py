"""`gradients.parquet`: exact whole-model gradient norms of a sample of a scan's tokens."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter

from eaft_probe.analysis.histogram2d import ENTROPY_STEP, PROB_STEP
from eaft_probe.analysis.rank_correlation import CLOSED, EXACT, WEIGHT, agreement
from eaft_probe.analysis.stratified_sample import ACROSS, BY, coarse_cell
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.errors import ScanError, one_line
from eaft_probe.scans.part_writer import GRADIENTS, write_parquet
from eaft_probe.scans.scan import Scan
from eaft_probe.scans.schemas import PLACES
from eaft_probe.scans.verification import footer, reading
from eaft_probe.storage.atomic import own_file

MADE_KEY = b"eaft_probe.gradients"  # how the file was made, as JSON
OWN = (
    (
        "cell",
        pa.int32(),
        "",
        f"{ACROSS} · floor(entropy / {BY * ENTROPY_STEP:g} nats) + "
        f"floor(prob · {1 / (BY * PROB_STEP):g})",
    ),
    (WEIGHT, pa.float32(), "tokens", "how many tokens of the scan this one was drawn for"),
    (EXACT, pa.float32(), "", "norm of d nll / d all parameters of the model, tied ones once"),
)


@dataclass(frozen=True)
class Made:
    """How a file of gradients was made. All but `sample` and `finished` a rerun must repeat."""

    scan: str  # the scan's parts, as a hash
    model: str  # identity of its weights
    adapter: str | None
    dtype: str
    seed: int
    sample: int  # tokens asked for
    finished: bool = False
    left_out: int = 0  # examples whose tokens did not come back from their text
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def differences(self, other: "Made") -> list[str]:
        """The names of what is not the same in both."""
        named = ("scan", "model", "adapter", "dtype", "seed")
        return [n for n in named if getattr(self, n) != getattr(other, n)]


_MADE = TypeAdapter(Made)
NEEDED = ("example", "position", "prob", "entropy", *(o[0] for o in OWN))
OPTIONAL = ("turn", *CLOSED)  # older files have no turn; the closed forms are as the scan has them
_TYPES = {n: kind for n, kind, *_ in (*PLACES, *OWN)}  # of the others float32


def _shape(schema: pa.Schema, key: Sequence[str]) -> str | None:
    """What is wrong with the columns, if anything is; `key` are those that tell tokens apart."""
    for name in (*NEEDED, *key, *(n for n in OPTIONAL if n in schema.names)):
        wanted = _TYPES.get(name, pa.float32())
        if schema.names.count(name) != 1 or schema.field(name).type != wanted:
            return f"it has no column {name} of {wanted}"
    return None


def _require_numbers(table: pa.Table) -> None:
    for name in table.column_names:
        column = table[name]
        if column.null_count or not np.isfinite(column.to_numpy()).all():
            raise ValueError(f"{name} is no finite number somewhere")


def scan_identity(scan: Scan) -> str:
    """A hash of the parts that the manifest lists."""
    return hashlib.sha256(json.dumps(scan.manifest["parts"]).encode()).hexdigest()


@dataclass(frozen=True)
class FullGradients:
    """The sampled tokens beside their exact norms, in the order in which they were drawn."""

    scan: Scan
    table: pandas.DataFrame
    made: Made

    @classmethod
    def open(cls, scan: Scan) -> "FullGradients":
        """Raises `ScanError` where the scan has none, or those of another scan."""
        path = scan.path / GRADIENTS
        if not path.exists():
            raise ScanError(f"{path} is not there; `eaft-probe gradients {scan.path}` makes it")
        try:
            footer(own_file(scan.path, GRADIENTS), partial(_shape, key=scan.token_key))
            with reading(path):
                table = pq.read_table(path.absolute(), partitioning=None)
            made = _MADE.validate_json((table.schema.metadata or {})[MADE_KEY], strict=True)
            _require_numbers(table)
        except (ScanError, KeyError, ValueError, RecursionError) as error:
            raise ScanError(
                f"{path} is damaged ({one_line(error, 200)}); `eaft-probe gradients "
                f"--overwrite` makes it anew"
            ) from error
        if made.scan != scan_identity(scan):
            raise ScanError(
                f"{path} is of another scan; `eaft-probe gradients --overwrite` makes it anew"
            )
        return cls(scan, table.to_pandas(), made)

    def agreement(self) -> pandas.DataFrame:
        """How well the closed forms stand for the exact norm; see `columns.agreement`."""
        return agreement({n: self.table[n].to_numpy() for n in self.table}, self.scan.rule)

    def summary(self) -> dict[str, Any]:
        """What `gradients --json` prints; NaN as None."""
        rows = self.agreement().to_dict("records")
        known = [{k: v if v == v else None for k, v in row.items()} for row in rows]
        return {
            "sampled": len(self.table),
            "cells": int(self.table["cell"].nunique()),
            "tokens": self.of,
            "tokens_in_cells": round(float(self.table[WEIGHT].sum())),
            "left_out_examples": self.made.left_out,
            "seed": self.made.seed,
            "rule": str(self.scan.rule),
            "agreement": known,
        }

    @property
    def of(self) -> int:
        """Tokens of the scan."""
        return int(self.scan.manifest["counts"]["trained_tokens"])

    @property
    def covered(self) -> float:
        """The share of the scan's tokens in the cells that the sample has tokens of."""
        return float(self.table[WEIGHT].astype(np.float64).sum()) / self.of

    def __str__(self) -> str:
        return (
            f"exact gradient norms of {len(self.table):,} of {self.of:,} tokens, from "
            f"{self.table['cell'].nunique()} cells with {100 * self.covered:.3g} % of all; "
            f"conflict: {self.scan.rule}"
        )


def write(scan: Scan, sample: Mapping[str, NDArray[Any]], norms: NDArray[Any], made: Made) -> None:
    """Writes the sampled tokens whose norm is there (not NaN). Raises `OSError`.

    A token stands for its stratum's tokens over those of them that are written.
    """
    known = np.isfinite(norms)
    held = {n: c[known] for n, c in sample.items()}
    _, code, taken = np.unique(held["stratum"], return_inverse=True, return_counts=True)
    held |= {
        "cell": coarse_cell(held),
        WEIGHT: held["stratum_tokens"] / taken[code],
        EXACT: norms[known],
    }
    _write(scan, held, made)


def join(scan: Scan, found: Sequence[FullGradients], first: Sequence[int]) -> None:
    """Writes the samples of scans, whose row 0 is row `first` of `scan`, as one of `scan`.

    A token stands for as many as before: what a stratum of the whole has is the sum over its scans.
    Raises `ScanError` where the samples were not made alike, and `OSError`.
    """
    made = found[0].made
    for other in found:
        same = not other.made.differences(replace(made, scan=other.made.scan))
        if not (same and other.made.sample == made.sample and other.made.finished):
            raise ScanError("their models, dtypes, seeds or samples differ, or one is unfinished")
    tables = [
        g.table.assign(example=g.table["example"] + f) for g, f in zip(found, first, strict=True)
    ]
    held = {n: c.to_numpy() for n, c in pandas.concat(tables, join="inner").items()}
    sums = {n: sum(getattr(g.made, n) for g in found) for n in ("sample", "left_out")}
    _write(scan, held, replace(made, scan=scan_identity(scan), **sums))


def _write(scan: Scan, held: Mapping[str, Any], made: Made) -> None:
    schema = _schema(held).with_metadata({MADE_KEY: json.dumps(asdict(made))})
    arrays = [pa.array(held[f.name].astype(f.type.to_pandas_dtype())) for f in schema]
    write_parquet(scan.path / GRADIENTS, pa.Table.from_arrays(arrays, schema=schema))
    scan.give_back(GRADIENTS)


def _schema(held: Mapping[str, Any]) -> pa.Schema:
    """Places, the cell, the weight, the exact norm, and beside it the scan's own columns."""
    places = [p for p in PLACES if p[0] in ("example", "turn", "position") and p[0] in held]
    own = [STATISTICS[n] for n in (*CLOSED, "prob", "entropy") if n in held]
    columns = [*places, *OWN, *((s.name, pa.float32(), s.unit, s.meaning) for s in own)]
    return pa.schema(
        [
            pa.field(n, kind, metadata={"unit": unit, "meaning": meaning})
            for n, kind, unit, meaning in columns
        ]
    )
