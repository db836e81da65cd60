"""What a scan adds up to, for scans that do not keep all of their tokens (--keep-tokens).

A total is a row (table, key, values); rows of the same table and key add up. So the totals of two
units, or of two scans, are their rows together, added: counts exactly, sums to float64's rounding.
They take some megabytes for any number of tokens. The tables:

    cell         cell of the plane, octave, the rule's sides, rank 0 → tokens, Σ each number column
    bits:COLUMN  upper 16 bits of the float32 → tokens: a sketch of its quantiles
    position     bin of the place in the answer → tokens; Σ and Σ² of entropy, nll and conflict
    role, class  → tokens, conflicts
    pair         JSON [label, model's choice] → conflicts, Σ prob, Σ top1_prob; the commonest
    kept:NAME    JSON value of a pass-through column → examples, those with a conflict
    scan         examples_with_conflicts; pairs_too_low, by how much a pair's conflicts may be
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from eaft_probe.analysis.count_queries import MOST_VALUES, Counts
from eaft_probe.analysis.histogram2d import CELLS, cell
from eaft_probe.analysis.positions import BINS, READS, sums_by_position
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.quantiles import UPPER, upper_bits
from eaft_probe.scans.keys import key_of
from eaft_probe.scans.schemas import TOTALS_SCHEMA

COLUMNS_KEY = b"eaft_probe.columns"
# Commonest pairs that are kept, some 4 MB. Exact up to so many; beyond, no pair's count is too low
# by more than conflicts / MOST_PAIRS.
MOST_PAIRS = 100_000
MANY = "many"  # the only key of a pass-through column with more than MOST_VALUES values
# A cell's key is 8 · (CELLS · octave + cell) + 4 · (entropy not below) + 2 · (prob not below) +
# (rank 0). The octave parts the cells at prob < 2⁻⁸, where gates like p^q differ most: it is 1 from
# 2⁻⁹ on, and 63 for all that is rarer than 2⁻⁷⁰.
SIDES, OCTAVES = 8, 64

Values = NDArray[np.float64]  # (n, m)
Sums = dict[str, tuple[list[str], Values]]  # table → its keys and their values


def unit_totals(
    tokens: pa.Table, examples: pa.Table, keep: Sequence[str], rule: ConflictRule, special: set[str]
) -> pa.Table:
    """The totals of one unit's tables, `special` being the tokenizer's added tokens."""
    floats = [f.name for f in tokens.schema if pa.types.is_floating(f.type)]
    columns = {n: tokens[n].to_numpy() for n in {*READS, *floats, "rank"}}
    sums: Sums = {"cell": _cells(columns, [*floats, "rank"], rule)}
    sums |= {f"bits:{n}": _occupied(upper_bits(columns[n])[:, None]) for n in floats}
    sums["position"] = _occupied(np.column_stack(list(sums_by_position([columns], rule).values())))
    sums |= _grouped(tokens, examples, keep, rule, special)
    return table_of(sums, [*floats, "rank"])


def _cells(
    columns: Mapping[str, NDArray[Any]], names: Sequence[str], rule: ConflictRule
) -> tuple[list[str], Values]:
    high = ~(columns["entropy"] < rule.entropy_below)
    likely = ~(columns["prob"] < rule.prob_below)
    cells = CELLS * _octave(columns["prob"]) + cell(columns)
    keys = SIDES * cells + 4 * high + 2 * likely + (columns["rank"] == 0)
    distinct, at = np.unique(keys, return_inverse=True)
    sums = [np.bincount(at, columns[n], len(distinct)) for n in names]
    counts = np.bincount(at, minlength=len(distinct))
    return list(map(str, distinct.tolist())), np.column_stack([counts, *sums])


def _octave(prob: NDArray[np.float32]) -> NDArray[np.int64]:
    _, exponent = np.frexp(prob)  # prob = mantissa · 2^exponent with a mantissa from 0.5 to 1
    octave: NDArray[np.int64] = (-7 - exponent.astype(np.int64)).clip(0, OCTAVES - 1)
    return np.where(prob > 0, octave, OCTAVES - 1)


def _occupied(values: NDArray[Any]) -> tuple[list[str], Values]:
    """The rows with anything in them, under their numbers."""
    at = np.flatnonzero(values.any(1))
    return list(map(str, at.tolist())), values[at].astype(np.float64)


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """Of one thread: the order in which it adds is a part's last digits. Once, since it takes
    25 ms."""
    return duckdb.connect(config={"threads": 1})


def _grouped(
    tokens: pa.Table, examples: pa.Table, keep: Sequence[str], rule: ConflictRule, special: set[str]
) -> Sums:
    with _database().cursor() as connection:
        connection.register("measured", tokens)
        connection.register("examples", examples)
        flagged = f"SELECT *, {rule.sql} AS conflict FROM measured"
        connection.execute(f"CREATE TEMP VIEW tokens AS {flagged}")  # of this cursor alone
        connection.execute("CREATE TEMP VIEW conflicts AS SELECT * FROM tokens WHERE conflict")
        key = key_of(examples)
        counts = Counts(lambda query: connection.execute(query).fetchall(), special, key)
        pairs = [(json.dumps([a, b]), n, n * p, n * q) for a, b, n, p, q in counts.pairs()]
        groups: dict[str, Sequence[tuple[Any, ...]]] = {
            "role": counts.roles(),
            "class": counts.classes(),
            "pair": pairs,
            "scan": [("examples_with_conflicts", counts.examples_with_conflicts())],
        }
        for name in keep:
            groups[f"kept:{name}"] = [(json.dumps(v), n, c) for v, n, c in counts.kept(name)]
    return {
        name: ([r[0] for r in rows], np.array([r[1:] for r in rows], np.float64))
        for name, rows in groups.items()
        if rows
    }


# --- added up ---


def added(tables: Sequence[pa.Table]) -> pa.Table:
    """The totals of several as one: those of the same columns."""
    parts = [sums_of(t) for t in tables]
    names = sorted({name for sums in parts for name in sums})
    whole = {name: _added([sums[name] for sums in parts if name in sums]) for name in names}
    for name, (keys, values) in whole.items():
        if name.startswith("kept:") and (MANY in keys or len(keys) > MOST_VALUES + 1):
            whole[name] = [MANY], values.sum(0, keepdims=True)
    if "pair" in whole and len(whole["pair"][0]) > MOST_PAIRS:
        whole["pair"], lost = _commonest(*whole["pair"])
        whole["scan"] = _added([whole["scan"], (["pairs_too_low"], np.array([[lost]]))])
    return table_of(whole, columns_of(tables[0]))


def added_up(tables: Iterable[pa.Table], at_once: int = 64) -> pa.Table:
    """The same of any number, of which some hundred are held at a time."""
    levels: list[list[pa.Table]] = [[]]  # each holds sums of at_once times as many as the one below
    for table in tables:
        levels[0].append(table)
        for depth, level in enumerate(levels):
            if len(level) == at_once:
                if depth + 1 == len(levels):
                    levels.append([])
                levels[depth + 1].append(added(level))
                level.clear()
    return added([table for level in reversed(levels) for table in level])


def _added(parts: Sequence[tuple[list[str], Values]]) -> tuple[list[str], Values]:
    """Keys in order, each once, with the sum of its values."""
    keys = pc.dictionary_encode(pa.array([k for keys, _ in parts for k in keys], pa.string()))
    at, values = keys.indices.to_numpy(), np.concatenate([v for _, v in parts])
    order = np.argsort(at, kind="stable")  # what is added first is a sum's last digits
    sums = np.add.reduceat(values[order], np.searchsorted(at[order], range(len(keys.dictionary))))
    rank = pc.sort_indices(keys.dictionary)
    return keys.dictionary.take(rank).to_pylist(), sums[rank.to_numpy()]


def _commonest(keys: list[str], values: Values) -> tuple[tuple[list[str], Values], float]:
    """The MOST_PAIRS with the most conflicts, less what the next one has, and how many that is.

    Counts can then be added again and none is too high; Agarwal et al., Mergeable Summaries, 2012.
    """
    lost = float(np.partition(values[:, 0], -MOST_PAIRS - 1)[-MOST_PAIRS - 1])
    left = np.flatnonzero(values[:, 0] > lost)
    share = 1 - lost / values[left, :1]
    return ([keys[i] for i in left], values[left] * share), lost


# --- as a table ---


def table_of(sums: Sums, columns: Sequence[str]) -> pa.Table:
    names = [name for name, (keys, _) in sums.items() for _ in keys]
    keys = [key for keys, _ in sums.values() for key in keys]
    sizes = [values.shape[1] for keys, values in sums.values() for _ in keys]
    flat = np.concatenate([values.ravel() for _, values in sums.values()])
    lists = pa.ListArray.from_arrays(np.cumsum([0, *sizes]).astype(np.int32), flat)
    schema = TOTALS_SCHEMA.with_metadata({COLUMNS_KEY: json.dumps(list(columns))})
    return pa.table([pa.array(names), pa.array(keys), lists], schema=schema)


def columns_of(table: pa.Table) -> list[str]:
    """What the values of `cell` are sums of, behind the tokens."""
    return list(json.loads(table.schema.metadata[COLUMNS_KEY]))


def sums_of(table: pa.Table) -> Sums:
    """Raises `ValueError` for what are no totals."""
    table = table.combine_chunks()
    runs = pc.run_end_encode(table["table"].combine_chunks())
    ends = [0, *runs.run_ends.to_pylist()]
    pieces = zip(runs.values.to_pylist(), ends, ends[1:], strict=False)
    return {name: _matrix(table.slice(a, b - a)) for name, a, b in pieces}


def _matrix(rows: pa.Table) -> tuple[list[str], Values]:
    values = rows["values"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix = values.reshape(len(rows), -1)
    if not np.isfinite(matrix).all():
        raise ValueError("a sum that is no number")
    return rows["key"].to_pylist(), matrix


WIDTHS = {"position": 7, "role": 2, "class": 2, "pair": 3, "scan": 1, "bits": 1, "kept": 2}


def require_sound(sums: Sums, columns: int, tokens: int) -> None:
    """Raises `ValueError` where the sums are not those of so many tokens and columns: somebody
    else may have written them."""
    widths = {**WIDTHS, "cell": 1 + columns}
    for name, (keys, values) in sums.items():
        kind = name.split(":")[0]
        if values.shape[1] != widths.get(kind):
            raise ValueError(f"{name} has {values.shape[1]} values")
        least = values[:, 0].min()
        if len(set(keys)) < len(keys) or least < 0 or (least == 0 and kind != "scan"):
            raise ValueError(f"{name} has a key twice, or one of nothing")
        if kind not in ("pair", "kept", "scan") and values[:, 0].sum() != tokens:
            raise ValueError(f"{name} is not of {tokens:,} tokens")
        _require_keys(kind, keys)
    _ = sums["cell"]


def _require_keys(kind: str, keys: Sequence[str]) -> None:
    rows = {"cell": SIDES * CELLS * OCTAVES, "position": BINS, "bits": UPPER}.get(kind)
    if rows is not None:
        _require_rows(keys, rows)
    for key in keys if kind == "pair" else ():
        label, choice = json.loads(key)
        if not (isinstance(label, str) and isinstance(choice, str)):
            raise ValueError("a pair of no texts")


def _require_rows(keys: Sequence[str], rows: int) -> None:
    numbers = np.array(keys, np.int64)
    if numbers.min() < 0 or numbers.max() >= rows:
        raise ValueError(f"{numbers.max()} is no number under {rows}")


def spread(keys: Sequence[str], values: Values, rows: int) -> Values:
    """(rows, m) with each key's values in the row of that number, the others 0."""
    full = np.zeros((rows, values.shape[1]))
    full[np.array(keys, np.int64)] = values
    return full
