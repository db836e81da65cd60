"""Parts read piece by piece, and what is wrong with their values."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import ScanError
from eaft_probe.scans.keys import named_place
from eaft_probe.scans.schemas import OPTIONAL
from eaft_probe.scans.verification import reading

CONTEXT = 80  # characters of text on each side of a conflict

# By the first part of a name. ln of the largest vocabulary is under 22 nats.
RANGES = {
    "prob": (-1e-3, 1.001),
    "top1": (-1e-3, 1.001),
    "entropy": (-1e-3, 100.0),
    "varentropy": (0.0, np.inf),
    "logprob": (-np.inf, 1e-3),
    "grad": (0.0, np.inf),
}


def text_around(
    table: pa.Table, examples: pa.Table, key: Sequence[str], path: Path
) -> list[tuple[str, str]]:
    """The text before and after each token. Raises `ScanError` where it does not stand in it."""
    texts = dict(zip(_keys(examples, key), examples["text"].to_pylist(), strict=True))
    contexts = []
    ends = (table[c].to_pylist() for c in ("char_start", "char_end"))
    for example, start, end in zip(_keys(table, key), *ends, strict=True):
        text = texts.get(example)
        if text is None or start is None or end is None or not 0 <= start <= end <= len(text):
            raise ScanError(
                f"{path} is damaged: a token at characters {start} to {end} of "
                f"{named_place(key, example)}, which has no such text"
            )
        contexts.append((text[max(0, start - CONTEXT) : start], text[end : end + CONTEXT]))
    return contexts


def _keys(table: pa.Table, key: Sequence[str]) -> Iterator[tuple[int, ...]]:
    return zip(*(table[name].to_pylist() for name in key), strict=True)


def row_groups(file: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """A part in its row groups of 500,000 tokens; an empty part is one empty table."""
    with reading(file), pq.ParquetFile(file) as part:
        for index in range(part.num_row_groups):
            yield in_range(part.read_row_group(index, columns=list(columns)), file)
        if not part.num_row_groups:
            yield part.read(columns=list(columns))


def in_range(table: pa.Table, file: Path) -> pa.Table:
    """Raises `ScanError` for a value that is missing, or that no scan would have written."""
    for name in table.column_names:
        column = table[name]
        if name in OPTIONAL:
            column = column.drop_null()
        if column.null_count:
            raise ScanError(f"{file} is damaged: {name} has no value at some token")
        if pa.types.is_floating(column.type) and not _in_range(name, column.to_numpy()):
            raise ScanError(f"{file} is damaged: {name} has an impossible value at some token")
    return table


def _in_range(name: str, values: NDArray[Any]) -> bool:
    """Finite; and no probability or entropy further from what is possible than rounding goes."""
    if not len(values):
        return True
    least, most = float(values.min()), float(values.max())  # NaN, if there is one
    low, high = RANGES.get(name.split("_")[0], (-np.inf, np.inf))
    return bool(np.isfinite([least, most]).all() and low <= least and most <= high)


def connected(
    files: Mapping[str, Sequence[Path]], rule: ConflictRule, beside: Sequence[Path]
) -> duckdb.DuckDBPyConnection:
    """A connection with a view of each kind of files, `tokens` with `conflict` and with the columns
    that stand `beside` it."""
    connection = duckdb.connect()
    for kind, paths in files.items():
        flag = f", {rule.sql} AS conflict" if kind == "tokens" else ""
        source = f"read_parquet({_sql_list(paths)}, hive_partitioning = false)"
        if kind == "tokens" and beside:
            more = f"read_parquet({_sql_list(beside)}, hive_partitioning = false)"
            source += f" JOIN {more} AS beside USING (example, turn, position)"
        connection.execute(f"CREATE VIEW {kind} AS SELECT *{flag} FROM {source}")
    return connection


def _sql_list(paths: Sequence[Path]) -> str:
    """DuckDB would take *, ? and [ in a folder's name as a pattern."""
    literal = ("".join(f"[{c}]" if c in "*?[" else c for c in str(p)) for p in paths)
    quoted = ", ".join("'" + p.replace("'", "''") + "'" for p in literal)
    return f"[{quoted}]"


def flagged_tokens(table: pa.Table, rule: ConflictRule) -> pa.Table:
    """The tokens that the rule flags, their texts as plain strings: row groups have dictionaries of
    their own."""
    flagged = table.filter(flags(table, rule))
    for name in [n for n in ("token", "top1") if pa.types.is_dictionary(flagged[n].type)]:
        index = flagged.schema.get_field_index(name)
        flagged = flagged.set_column(index, name, pc.cast(flagged[name], pa.string()))
    return flagged


def flags(table: pa.Table, rule: ConflictRule) -> pa.Array:
    """(N,) whether each token is a conflict."""
    return pa.array(rule({c: table[c].to_numpy() for c in rule.reads}), pa.bool_())
