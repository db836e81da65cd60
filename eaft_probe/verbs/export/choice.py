"""Which rows of a scan are exported: its rows as a table of `probe_` columns, asked by SQL.

The table lies in a database file, so that memory does not grow with the data. Once it is filled,
the database may touch no other file: a condition comes from a user, and may be passed on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from eaft_probe.analysis.scores import available_scores, require_score, row_scores
from eaft_probe.errors import BadInput, ScanError, one_line
from eaft_probe.scans.rejections import rejected
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import ExportSettings

PREFIX = "probe_"
EXAMPLE, REJECTED = f"{PREFIX}example", f"{PREFIX}rejected"
COUNTS = ("tokens", "trained_tokens", "conflicts")
CONFIG: dict[str, str | int] = {"memory_limit": "512MB", "threads": 1}
AT_ONCE = 100  # rows in Python's types

Probe = dict[str, Any]  # the `probe_` columns of a row


def probe_schema(scan: Scan) -> pa.Schema:
    """The columns that `--for rows` adds, and that `--where` may name."""
    counts = [(f"{PREFIX}{name}", pa.int64()) for name in COUNTS]
    scores = [(f"{PREFIX}{score.name}", pa.float64()) for score in available_scores(scan)]
    return pa.schema([(EXAMPLE, pa.int64()), *counts, *scores, (REJECTED, pa.string())])


@dataclass(frozen=True)
class Choice:
    """The chosen rows, in the order of the data."""

    database: duckdb.DuckDBPyConnection
    count: int
    rejected: int  # of all rows, chosen or not

    def __iter__(self) -> Iterator[Probe]:
        with self.database.cursor() as cursor:
            cursor.execute("SELECT * FROM chosen")
            names = [column[0] for column in cursor.description or ()]
            while rows := cursor.fetchmany(AT_ONCE):
                yield from (dict(zip(names, row, strict=True)) for row in rows)


def choose(scan: Scan, settings: ExportSettings, folder: Path) -> Choice:
    """Fills a database in `folder`. Raises `BadInput` for a condition or a ranking that cannot be
    used, and `ScanError` for a damaged scan."""
    ranking = _ranking(scan, settings)
    database = duckdb.connect(
        str(folder / "rows.duckdb"), config={**CONFIG, "temp_directory": str(folder)}
    )
    schema = probe_schema(scan)
    database.register("part", schema.empty_table())
    database.execute("CREATE TABLE probe AS SELECT * FROM part")
    for part in _parts(scan, schema):
        database.register("part", part)
        database.execute("INSERT INTO probe SELECT * FROM part")
    database.unregister("part")
    for name, value in (("enable_external_access", "false"), ("lock_configuration", "true")):
        database.execute(f"SET {name} = {value}")
    _choose(database, settings, ranking, schema)
    ((count,),) = database.execute("SELECT count(*) FROM chosen").fetchall()
    return Choice(database, count, int(scan.manifest["counts"]["rejected"]))


def _parts(scan: Scan, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows part by part, then the rejected ones."""
    scores = available_scores(scan)
    scored = row_scores(scan, scores)
    for part in range(len(scan.manifest["parts"])):
        examples = scan.example_part(part, ["example", "tokens"])
        if len(examples):
            yield _table(scan, examples, next(scored, None), schema)
    lines = ({EXAMPLE: row["row"], REJECTED: str(row.get("reason"))} for row in rejected(scan))
    while batch := list(islice(lines, AT_ONCE)):
        yield pa.Table.from_pylist(batch, schema)


def _table(
    scan: Scan, examples: pa.Table, scores: dict[str, Any] | None, schema: pa.Schema
) -> pa.Table:
    example, tokens = (examples[name].to_numpy() for name in ("example", "tokens"))
    first = np.flatnonzero(np.diff(example, prepend=-1))
    if scores is None or not np.array_equal(example[first], scores["example"]):
        raise ScanError(f"{scan.path} is damaged: its examples are not those of its tokens")
    trained = scores["trained_tokens"]
    columns = {
        **scores,
        "tokens": np.add.reduceat(tokens.astype(np.int64), first),
        # A share of n is exact enough to give back the count.
        "conflicts": np.rint(scores["conflict_share"] * trained).astype(np.int64),
    }
    arrays = [
        pa.array(columns[f.name.removeprefix(PREFIX)], f.type, from_pandas=True)  # NaN is null
        if f.name != REJECTED
        else pa.nulls(len(first), f.type)
        for f in schema
    ]
    return pa.table(arrays, schema=schema)


# --- the choice ---


def _ranking(scan: Scan, settings: ExportSettings) -> str:
    """What DuckDB does to the rows, `{}`, that the condition leaves."""
    if settings.rank_by is None:
        return "SELECT * FROM {}"
    score = require_score(scan, settings.rank_by)
    column = f"{PREFIX}{score.name}"
    order = f"{column} {'DESC' if score.largest_first else 'ASC'} NULLS LAST, {EXAMPLE}"
    if settings.top is not None:
        query = f"{{}} WHERE {column} IS NOT NULL ORDER BY {order} LIMIT {settings.top}"
    else:
        query = f"{{}} ORDER BY {order} OFFSET {settings.drop_top}"
    return f"SELECT * FROM (SELECT * FROM {query})"


def _choose(
    database: duckdb.DuckDBPyConnection, settings: ExportSettings, ranking: str, schema: pa.Schema
) -> None:
    """The table `chosen`."""
    rows = database.table("probe")
    if settings.for_ != "rows":
        rows = rows.filter(f"{REJECTED} IS NULL")
    try:
        if settings.where is not None:
            rows = rows.filter(settings.where)  # one expression, which no ; or ) can leave
        chosen = rows.query("left_over", f"{ranking.format('left_over')} ORDER BY {EXAMPLE}")
        chosen.create("chosen")
    except duckdb.Error as error:
        raise BadInput(
            f"--where: {one_line(error)}; it is a condition in SQL on {', '.join(schema.names)}"
        ) from error
