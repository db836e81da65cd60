"""The files of a scan: parquet parts, the manifest that makes them a scan, and how to read both."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eaft_probe.columns.conflicts import ConflictRule, write_json
from eaft_probe.columns.quantiles import quantiles
from eaft_probe.columns.statistics import STATISTICS, Statistic
from eaft_probe.errors import MissingColumn, ScanError
from eaft_probe.files import written_aside

if TYPE_CHECKING:
    import pandas

SCHEMA_VERSION = 1
MANIFEST, PLAN = "manifest.json", "plan.json"
REJECTED, CONFLICTS = "rejected.jsonl", "conflicts.parquet"
GRADIENTS = "gradients.parquet"  # exact norms of a sample of tokens, where somebody took them
CACHE = "cache"  # histograms that figures made; may be removed at any time
REPORT_KEY = b"eaft_probe.unit"  # what a unit did besides its rows, in its examples part
CONTEXT = 80  # characters of text on each side of a conflict
TEXT = pa.dictionary(pa.int32(), pa.string())

# (name, type, unit, meaning) of the columns that are not statistics.
PLACES = (
    ("example", pa.int64(), "", "row number in the data, from 0"),
    ("turn", pa.int16(), "", "index of the message the token belongs to"),
    ("position", pa.int32(), "tokens", "the label's index in the example's token sequence"),
    ("token_id", pa.int32(), "", "the label"),
    ("token", TEXT, "", "the label decoded alone; bytes that are no character as \\xNN"),
    ("char_start", pa.int32(), "characters", "where the token begins in examples.text"),
    ("char_end", pa.int32(), "characters", "one past where it ends in examples.text"),
)
TOP1 = ("top1", TEXT, "", "the likeliest token decoded alone")
EXAMPLES = (
    ("example", pa.int64(), "", "row number in the data, from 0"),
    ("key", pa.string(), "", "the row's own id, where it has one"),
    ("text", pa.string(), "", "the rendered conversation"),
    ("messages", pa.string(), "", "the messages as JSON"),
    ("tokens", pa.int32(), "tokens", "length of the token sequence that was read"),
    ("trained_tokens", pa.int32(), "tokens", "how many of them are trained and scored"),
    ("mean_nll", pa.float32(), "nats", "mean of −logprob over the trained tokens"),
    ("mean_entropy", pa.float32(), "nats", "mean entropy over the trained tokens"),
)

EXAMPLE_COLUMNS = (*(e[0] for e in EXAMPLES), "conflicts")  # the last on reading


def _field(name: str, kind: pa.DataType, unit: str, meaning: str) -> pa.Field:
    return pa.field(name, kind, metadata={"unit": unit, "meaning": meaning})


def tokens_schema(statistics: Sequence[Statistic]) -> pa.Schema:
    """The columns of a tokens part; `top1` stands behind `top1_id`."""
    fields = [_field(*place) for place in PLACES]
    for s in statistics:
        fields.append(_field(s.name, getattr(pa, s.dtype)(), s.unit, s.meaning))
        if s.name == "top1_id":
            fields.append(_field(*TOP1))
    return pa.schema(fields)


def examples_schema(keep: Sequence[str]) -> pa.Schema:
    """The columns of an examples part; `keep` are the pass-through columns, as JSON text."""
    kept = [_field(name, pa.string(), "", "passed through from the data") for name in keep]
    return pa.schema([*(_field(*e) for e in EXAMPLES), *kept])


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def write_part(
    folder: Path, index: int, tokens: pa.Table, examples: pa.Table, report: Mapping[str, Any]
) -> None:
    """One unit's two files. The examples part is renamed last: where it stands, both do."""
    examples = examples.replace_schema_metadata({REPORT_KEY: json.dumps(report)})
    for kind, table in (("tokens", tokens), ("examples", examples)):
        write_parquet(folder / kind / part_name(index), table)


def write_parquet(path: Path, table: pa.Table) -> None:
    with written_aside(path) as aside:
        pq.write_table(table, aside, **_encoding(table.schema))


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Floats split by byte, counting columns as differences, texts and ids as dictionaries."""
    floats = [f.name for f in schema if pa.types.is_floating(f.type)]
    counting = [n for n in ("position", "char_start", "char_end") if n in schema.names]
    plain = {*floats, *counting}
    return {
        "compression": "zstd",
        "compression_level": 3,  # level 9 saved 1 % and took 2.5 times as long
        "use_dictionary": [f.name for f in schema if f.name not in plain],
        "column_encoding": {
            **dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
            **dict.fromkeys(counting, "DELTA_BINARY_PACKED"),
        },
        "row_group_size": 500_000,  # some 20 MB: dataset viewers open groups up to 100 MB
    }


def unit_report(folder: Path, index: int) -> dict[str, Any] | None:
    """What a finished unit reported; None where it is not finished."""
    try:
        metadata = pq.read_schema(folder / "examples" / part_name(index)).metadata or {}
        report = json.loads(metadata[REPORT_KEY])
        rows = pq.read_metadata(folder / "tokens" / part_name(index)).num_rows
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None  # not there, or damaged by a crash: scored again
    return report if rows == report["counts"]["trained_tokens"] else None


@dataclass(frozen=True)
class Scan:
    """A finished scan. `Scan.open("eaft-scan").tokens(["prob", "conflict"])` is a data frame."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "Scan":
        """Raises `ScanError` where there is no finished scan of this schema version."""
        path = Path(folder)
        if not (path / MANIFEST).exists():
            why = (
                "an unfinished scan: rerun the same scan command"
                if (path / PLAN).exists()
                else "no scan"
            )
            raise ScanError(f"{folder} holds {why}" + ("" if path.exists() else "; no such folder"))
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            version = manifest["schema_version"]
            _ = (manifest["parts"], manifest["columns"], manifest["counts"], manifest["config"])
        except (ValueError, KeyError, TypeError) as error:
            raise ScanError(f"{path / MANIFEST} is damaged") from error
        if version != SCHEMA_VERSION:
            raise ScanError(f"{folder} has schema version {version}, this reads {SCHEMA_VERSION}")
        return cls(path, manifest)

    @property
    def rule(self) -> ConflictRule:
        """The conflict rule the scan is flagged with."""
        return ConflictRule.load(self.path)

    @property
    def columns(self) -> list[str]:
        """The names of the token columns."""
        return list(self.manifest["columns"])

    def part_files(self, kind: str) -> list[Path]:
        """The parts of "tokens" or "examples", in the order of the data."""
        files = [self.path / kind / part["file"] for part in self.manifest["parts"]]
        missing = next((f for f in files if not f.exists()), None)
        if missing:
            raise ScanError(f"{missing} is missing, though the manifest lists it")
        return files

    def tokens(self, columns: Sequence[str] | None = None) -> "pandas.DataFrame":
        """The tokens as a pandas frame; see `tokens_table`."""
        return self.tokens_table(columns).to_pandas()

    def tokens_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The tokens as an Arrow table, one row a scored token, sorted by (example, position).

        `columns`: names of token columns or "conflict", the flag under `rule`; None is all of
        them. Raises `MissingColumn`.
        """
        names = [*self.columns, "conflict"] if columns is None else list(columns)
        parts = list(self.token_parts(names))
        return pa.concat_tables(parts).unify_dictionaries()

    def token_parts(self, columns: Sequence[str], only: int | None = None) -> Iterator[pa.Table]:
        """The tokens piece by piece, in constant memory; of all parts or one.

        Columns as in `tokens_table`.
        """
        missing = next((c for c in columns if c not in [*self.columns, "conflict"]), None)
        if missing is not None:
            hint = f"; rescan with --statistics {missing}" if missing in STATISTICS else ""
            raise MissingColumn(f"{self.path} has no column {missing!r}{hint}")
        read = {c for c in columns if c != "conflict"}
        read |= {"entropy", "prob"} if "conflict" in columns else set()
        rule = self.rule
        files = self.part_files("tokens")
        for file in files if only is None else files[only : only + 1]:
            for table in _row_groups(file, sorted(read)):
                if "conflict" in columns:
                    flags = rule({c: table[c].to_numpy() for c in ("entropy", "prob")})
                    table = table.append_column("conflict", pa.array(flags, pa.bool_()))
                yield table.select(list(columns))

    def token_arrays(
        self, columns: Sequence[str], only: int | None = None
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """`token_parts` with number columns as NumPy arrays."""
        for table in self.token_parts(columns, only):
            yield {name: table[name].to_numpy() for name in columns}

    def examples(self) -> "pandas.DataFrame":
        """The examples as a pandas frame, one row a scored example."""
        files = self.part_files("examples")
        return pa.concat_tables(pq.read_table(f, partitioning=None) for f in files).to_pandas()

    def conflicts(self) -> "pandas.DataFrame":
        """The flagged tokens with 80 characters of text on each side."""
        return pq.read_table(self.path / CONFLICTS, partitioning=None).to_pandas()

    def quantiles(self, column: str, at: Sequence[float]) -> list[float]:
        """Exact quantiles of a float column over the whole scan, in constant memory."""

        def chunks() -> Iterator[NDArray[np.float32]]:
            for part in self.token_parts([column]):
                yield part[column].to_numpy()

        return quantiles(chunks, at)

    @cached_property
    def sql(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection with views `tokens` (with `conflict`), `examples`, `conflicts`.

        `conflict` follows the rule at the time of the first use.
        """
        connection = duckdb.connect()
        for kind in ("tokens", "examples"):
            files = [str(f) for f in self.part_files(kind)]
            more = f", {self.rule.sql} AS conflict" if kind == "tokens" else ""
            source = f"read_parquet({_sql_list(files)}, hive_partitioning = false)"
            connection.execute(f"CREATE VIEW {kind} AS SELECT *{more} FROM {source}")
        file = _sql_list([str(self.path / CONFLICTS)])
        connection.execute(f"CREATE VIEW conflicts AS SELECT * FROM read_parquet({file})")
        return connection

    def flag(self, rule: ConflictRule) -> "Scan":
        """Writes `rule.json` and `conflicts.parquet`, part by part; the scan under the new rule."""
        rule = self._resolved(rule)
        with (
            written_aside(self.path / CONFLICTS) as aside,
            pq.ParquetWriter(aside, CONFLICT_SCHEMA, compression="zstd") as writer,
        ):
            for index in range(len(self.manifest["parts"])):
                writer.write_table(self._part_conflicts(index, rule))
        rule.save(self.path)
        return Scan(self.path, self.manifest)

    def _resolved(self, rule: ConflictRule) -> ConflictRule:
        """A rule by quantile gets the absolute thresholds that the scan has there."""
        if rule.quantile is None:
            return rule
        entropy, prob = (self.quantiles(c, [rule.quantile])[0] for c in ("entropy", "prob"))
        return ConflictRule(entropy, prob, rule.quantile)

    def _part_conflicts(self, index: int, rule: ConflictRule) -> pa.Table:
        tokens, examples = (self.part_files(k)[index] for k in ("tokens", "examples"))
        names = [n for n in CONFLICT_SCHEMA.names if n not in ("before", "after")]
        table = pq.read_table(tokens, columns=[*names, "char_start", "char_end"], partitioning=None)
        flags = rule({c: table[c].to_numpy() for c in ("entropy", "prob")})
        table = table.filter(pa.array(flags, pa.bool_()))
        text = pq.read_table(examples, columns=["example", "text"], partitioning=None)
        texts = dict(zip(text["example"].to_pylist(), text["text"].to_pylist(), strict=True))
        places = zip(
            *(table[c].to_pylist() for c in ("example", "char_start", "char_end")), strict=True
        )
        around = [
            (texts[e][max(0, start - CONTEXT) : start], texts[e][end : end + CONTEXT])
            for e, start, end in places
        ]
        columns = [pc.cast(table[n], CONFLICT_SCHEMA.field(n).type) for n in names]
        sides = [pa.array([a[i] for a in around], pa.string()) for i in (0, 1)]
        return pa.table([*columns, *sides], schema=CONFLICT_SCHEMA)


CONFLICT_SCHEMA = pa.schema(
    [
        ("example", pa.int64()),
        ("turn", pa.int16()),
        ("position", pa.int32()),
        ("token", pa.string()),
        ("top1", pa.string()),
        ("prob", pa.float32()),
        ("top1_prob", pa.float32()),
        ("entropy", pa.float32()),
        ("rank", pa.int32()),
        ("before", pa.string()),
        ("after", pa.string()),
    ]
)


def _row_groups(file: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """A part in its row groups of 500,000 tokens; an empty part is one empty table."""
    with pq.ParquetFile(file) as part:
        for index in range(part.num_row_groups):
            yield part.read_row_group(index, columns=list(columns))
        if not part.num_row_groups:
            yield part.read(columns=list(columns))


def _sql_list(paths: Sequence[str]) -> str:
    quoted = ", ".join("'" + p.replace("'", "''") + "'" for p in paths)
    return f"[{quoted}]"


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> Scan:
    """The last file of a scan: once it stands, the scan is complete."""
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, **manifest})
    return Scan.open(folder)
