"""`gradients.parquet`: exact whole-model gradient norms of a sample of a scan's tokens."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

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
from eaft_probe.quantities import counted_noun, percent
from eaft_probe.scans.keys import Arrays
from eaft_probe.scans.part_writer import GRADIENTS, write_parquet
from eaft_probe.scans.scan import Scan
from eaft_probe.scans.schemas import PLACES, column_field, wrong_columns
from eaft_probe.scans.verification import footer, reading
from eaft_probe.storage.atomic import file_inside

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
class Provenance:
    """How a file of gradients was made. All but `sample` and `finished` a rerun must repeat."""

    scan: str  # the scan's parts, as a hash
    model: str  # identity of its weights
    adapter: str | None
    dtype: str
    seed: int
    sample: int  # tokens asked for
    finished: bool = False
    left_out: int = 0  # examples whose tokens did not come back from their text
    config: Mapping[str, object] = field(default_factory=dict, compare=False)

    def differences(self, other: "Provenance") -> list[str]:
        """The names of what is not the same in both."""
        return [
            name
            for name in ("scan", "model", "adapter", "dtype", "seed")
            if getattr(self, name) != getattr(other, name)
        ]


_MADE = TypeAdapter(Provenance)
NEEDED = ("prob", "entropy", *(o[0] for o in OWN))  # and the token's key
_TYPES = dict.fromkeys(("prob", "entropy", *CLOSED), pa.float32()) | {
    n: kind for n, kind, *_ in (*PLACES, *OWN)
}


def scan_identity(scan: Scan) -> str:
    """A hash of the parts that the manifest lists."""
    return hashlib.sha256(json.dumps(scan.manifest["parts"]).encode()).hexdigest()


@dataclass(frozen=True)
class FullGradients:
    """The sampled tokens beside their exact norms, in the order in which they were drawn."""

    scan: Scan
    table: pandas.DataFrame
    made: Provenance

    @classmethod
    def open(cls, scan: Scan) -> "FullGradients":
        """Raises `ScanError` where the scan has none, or those of another scan."""
        path = scan.path / GRADIENTS
        if not path.exists():
            raise ScanError(f"{path} does not exist; `eaft-probe gradients {scan.path}` makes it")
        try:
            needed = [*scan.token_key, *NEEDED]
            fits = partial(wrong_columns, needed=needed, known=_TYPES)
            footer(file_inside(scan.path, GRADIENTS), fits)
            with reading(path):
                table = pq.read_table(path.absolute(), partitioning=None)
            made = _MADE.validate_json((table.schema.metadata or {})[MADE_KEY], strict=True)
            for name in table.column_names:
                if table[name].null_count or not np.isfinite(table[name].to_numpy()).all():
                    raise ValueError(f"{name} is not a finite number in some row")
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
        """How well the closed forms stand for the exact norm; see `rank_correlation`."""
        missing = next((n for n in self.scan.rule.reads if n not in self.table), None)
        if missing:
            raise ScanError(
                f"{self.scan.path / GRADIENTS} has no column {missing!r}, which the conflict rule "
                f"reads; `eaft-probe gradients --overwrite` makes it anew"
            )
        return agreement({n: self.table[n].to_numpy() for n in self.table}, self.scan.rule)

    def summary(self) -> dict[str, object]:
        """What `gradients --json` prints; NaN as None."""
        rows = self.agreement().to_dict("records")
        return {
            "sampled": len(self.table),
            "cells": int(self.table["cell"].nunique()),
            "tokens": self.of,
            "tokens_in_cells": round(float(self.table[WEIGHT].sum())),
            "left_out_examples": self.made.left_out,
            "seed": self.made.seed,
            "rule": str(self.scan.rule),
            "agreement": [{k: v if v == v else None for k, v in row.items()} for row in rows],
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
            f"Exact gradient norms of {len(self.table):,} of {counted_noun(self.of, 'token')}. "
            f"They are drawn from {counted_noun(self.table['cell'].nunique(), 'cell')} of "
            f"probability and entropy, which hold {percent(self.covered)} of the tokens. "
            f"Conflict: {self.scan.rule}"
        )


def write(scan: Scan, sample: Arrays, norms: NDArray[np.floating], made: Provenance) -> None:
    """Writes the sampled tokens whose norm is there (not NaN). Raises `OSError`.

    A token stands for its stratum's tokens over those of them that are written.
    """
    has_norm = np.isfinite(norms)
    columns = {n: c[has_norm] for n, c in sample.items()}
    _, code, taken = np.unique(columns["stratum"], return_inverse=True, return_counts=True)
    columns |= {
        "cell": coarse_cell(columns),
        WEIGHT: columns["stratum_tokens"] / taken[code],
        EXACT: norms[has_norm],
    }
    _write(scan, columns, made)


def join(scan: Scan, samples: Sequence[FullGradients], first: Sequence[int]) -> None:
    """Writes the samples of scans, whose row 0 is row `first` of `scan`, as one of `scan`.

    A token stands for as many as before: what a stratum of the whole has is the sum over its scans.
    Raises `ScanError` where the samples were not made alike, and `OSError`.
    """
    made = samples[0].made
    for other in (s.made for s in samples):
        same = not other.differences(replace(made, scan=other.scan))
        if not (same and other.sample == made.sample and other.finished):
            raise ScanError("their models, dtypes, seeds or samples differ, or one is unfinished")
    tables = [
        s.table.assign(example=s.table["example"] + f) for s, f in zip(samples, first, strict=True)
    ]
    columns = {n: c.to_numpy() for n, c in pandas.concat(tables, join="inner").items()}
    sums = {n: sum(getattr(s.made, n) for s in samples) for n in ("sample", "left_out")}
    _write(scan, columns, replace(made, scan=scan_identity(scan), **sums))


def _write(scan: Scan, columns: Arrays, made: Provenance) -> None:
    schema = _schema([*columns]).with_metadata({MADE_KEY: json.dumps(asdict(made))})
    arrays = [pa.array(columns[f.name].astype(f.type.to_pandas_dtype())) for f in schema]
    write_parquet(scan.path / GRADIENTS, pa.Table.from_arrays(arrays, schema=schema))
    scan.give_back(GRADIENTS)


def _schema(names: Sequence[str]) -> pa.Schema:
    """The token's key, the cell, the weight, the exact norm, and then the scan's own columns."""
    key = [p for p in PLACES if p[0] in ("example", "turn", "position") and p[0] in names]
    own = [STATISTICS[n] for n in (*CLOSED, "prob", "entropy", "surprise") if n in names]
    described = ((s.name, pa.float32(), s.unit, s.meaning) for s in own)
    return pa.schema([column_field(*column) for column in (*key, *OWN, *described)])
