"""A finished scan: opened, read piece by piece, queried and flagged."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eaft_probe.columns.conflicts import RULE_FILE, ConflictRule
from eaft_probe.columns.quantiles import quantiles
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.errors import MissingColumn, ProbeError, ScanError, one_line
from eaft_probe.scans.alignment import ALIGNMENT_COLUMNS, PLACE, aligned, alignment_manifest
from eaft_probe.scans.keys import EACH, TOGETHER
from eaft_probe.scans.manifest import MANIFEST, read_manifest
from eaft_probe.scans.part_reader import connected, flagged_tokens, flags, row_groups, text_around
from eaft_probe.scans.part_writer import (
    CONFLICTS,
    GRADIENTS,
    PLAN,
    REJECTED,
    RULE_KEY,
    TOTALS,
    VIEWABLE,
    sha256,
)
from eaft_probe.scans.remote_cache import mirrored, not_finished
from eaft_probe.scans.schemas import CONFLICT_SCHEMA, TOTALS_SCHEMA, conflicts_shape, shapes
from eaft_probe.scans.shown.hub_card import CARD, is_own_card, write_card
from eaft_probe.scans.shown.notebook import InNotebook
from eaft_probe.scans.verification import check_parts, footer, reading
from eaft_probe.storage.atomic import file_inside, written_aside
from eaft_probe.storage.folder import Folder
from eaft_probe.storage.remote import Store, local

if TYPE_CHECKING:
    import pandas

WRITTEN_ONCE, REWRITTEN = (PLAN, REJECTED, TOTALS), (RULE_FILE, CONFLICTS, GRADIENTS, CARD)


@dataclass(frozen=True, repr=False)
class Scan(InNotebook):
    """A finished scan. `Scan.open("eaft-scan").tokens(["prob", "conflict"])` is a data frame."""

    path: Path
    manifest: dict[str, Any]
    store: Store | None = None  # that `path` mirrors, see `remote_cache.py`

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False) -> "Scan":
        """A scan that anybody may have made: checked against its manifest, in every footer.

        `folder`: or the URL of a store, whose files are fetched first.
        `verify`: every part is read and its sha256 compared, and what is flagged is flagged again;
        without it up to 64 MB of each kind are hashed.
        Raises `ScanError` where there is no finished scan of this schema version, or a damaged one.
        """
        store = Store.of(folder)
        path = mirrored(store, WRITTEN_ONCE, REWRITTEN) if store else local(folder)
        if not (path / MANIFEST).exists():
            if not path.exists():
                raise ScanError(f"{folder} holds no scan: there is no such folder")
            raise not_finished(str(folder), begun=(path / PLAN).exists())
        manifest = read_manifest(path)
        check_parts(path, manifest, shapes(manifest["columns"], manifest["config"]["keep"]), verify)
        scan = cls(path, manifest, store)
        if not scan.keeps_all:
            _ = scan.totals
        if verify and scan.is_flagged:
            scan._require_own_conflicts()
        return scan

    @property
    def place(self) -> str:
        """The folder, or the URL that it mirrors, for people."""
        return self.store.shown if self.store else str(self.path)

    @property
    def rule(self) -> ConflictRule:
        """The conflict rule the scan is flagged with."""
        return ConflictRule.load(self.path)

    @property
    def keep_tokens(self) -> str:
        """Which of its tokens it has, row by row: "all", "flagged" or "sample:F"."""
        return self.manifest["config"].get("keep_tokens") or "all"

    @property
    def keeps_all(self) -> bool:
        return self.keep_tokens == "all"

    @property
    def by_turn(self) -> bool:
        """Whether each trained turn is an example of its own (--turns each)."""
        return bool(self.manifest["config"].get("turns") == "each")

    @property
    def turns(self) -> str:
        """What it was made with, as --turns says it; older scans do not say."""
        return "each" if self.by_turn else "together"

    @property
    def example_key(self) -> tuple[str, ...]:
        """The columns that tell its examples apart, and tokens from those of other examples."""
        return EACH if self.by_turn else TOGETHER

    @property
    def token_key(self) -> tuple[str, ...]:
        """The columns that tell its tokens apart, by which they are sorted."""
        return (*self.example_key, "position")

    @property
    def renderings(self) -> int:
        """How many examples were scored: of a row one, or one for each turn."""
        counts = self.manifest["counts"]
        return int(counts.get("renderings", counts["examples"]))

    @property
    def kept(self) -> int:
        """How many tokens it has row by row."""
        return sum(part["rows"] for part in self.manifest["parts"])

    def require_all(self, what: str) -> None:
        """Raises `ScanError` where the scan has not kept all of its tokens, which `what` reads."""
        if not self.keeps_all:
            raise ScanError(
                f"{what} reads every token, but {self.place} was made with --keep-tokens "
                f"{self.keep_tokens}; rescan with --keep-tokens all"
            )

    @cached_property
    def totals(self) -> pa.Table:
        """What a scan that does not keep all of its tokens adds up to.

        Raises `ScanError` where it is not what the manifest says.
        """
        file = file_inside(self.path, TOTALS).absolute()
        footer(file, lambda schema: None if schema.equals(TOTALS_SCHEMA) else "other columns")
        with reading(file):
            if sha256(file) != self.manifest.get("totals"):
                raise ScanError(f"{file} is not what the manifest describes: its sha256 differs")
            return pq.read_table(file, partitioning=None)

    @property
    def is_flagged(self) -> bool:
        """Whether `flag` has given it a rule; conflicts.parquet is made again where it lacks."""
        return (self.path / RULE_FILE).exists()

    @property
    def columns(self) -> list[str]:
        """The names of the token columns, those of a forecast included."""
        own = list(self.manifest["columns"])
        return own if alignment_manifest(self.path) is None else [*own, *ALIGNMENT_COLUMNS]

    def part_files(self, kind: str) -> list[Path]:
        """The parts of "tokens" or "examples", in the order of the data."""
        return [self.path.absolute() / kind / part["file"] for part in self.manifest["parts"]]

    def tokens(self, columns: Sequence[str] | None = None) -> "pandas.DataFrame":
        """The tokens as a pandas frame; see `tokens_table`."""
        return self.tokens_table(columns).to_pandas()

    def tokens_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The tokens as an Arrow table, one row a scored token, sorted by `token_key`.

        `columns`: names of token columns or "conflict", the flag under `rule`; None is all of
        them. Raises `MissingColumn`.
        """
        names = [*self.columns, "conflict"] if columns is None else columns
        return pa.concat_tables(self.token_parts(names)).unify_dictionaries()

    def token_parts(self, columns: Sequence[str], only: int | None = None) -> Iterator[pa.Table]:
        """The tokens piece by piece, in constant memory; of all parts or one.

        Columns as in `tokens_table`.
        """
        missing = next((c for c in columns if c not in [*self.columns, "conflict"]), None)
        if missing is not None:
            hint = f"; rescan with --statistics {missing}" if missing in STATISTICS else ""
            raise MissingColumn(f"{self.path} has no column {missing!r}{hint}")
        rule = self.rule if "conflict" in columns else None
        beside = [c for c in columns if c in ALIGNMENT_COLUMNS]
        reads = {*columns, *(rule.reads if rule else ()), *(PLACE if beside else ())}
        reads -= {"conflict", *beside}
        parts = enumerate(self.part_files("tokens"))
        for part, file in parts if only is None else [*parts][only : only + 1]:
            for table in aligned(row_groups(file, sorted(reads)), self.path, part, beside):
                if rule is not None:
                    table = table.append_column("conflict", flags(table, rule))
                yield table.select(list(columns))

    def token_arrays(
        self, columns: Sequence[str], only: int | None = None
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """`token_parts` with number columns as NumPy arrays."""
        for table in self.token_parts(columns, only):
            yield {name: table[name].to_numpy() for name in columns}

    def examples(self) -> "pandas.DataFrame":
        """The examples as a pandas frame, one row a scored example."""
        parts = range(len(self.manifest["parts"]))
        return pa.concat_tables(self.example_part(part) for part in parts).to_pandas()

    def example_part(self, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The examples of one part. Raises `ScanError` where the file is damaged."""
        file = self.part_files("examples")[part]
        with reading(file):
            return pq.read_table(file, columns=columns, partitioning=None)

    def conflicts(self) -> "pandas.DataFrame":
        """The flagged tokens with 80 characters of text on each side."""
        file = self.conflicts_file()
        with reading(file):
            return pq.read_table(file, partitioning=None).to_pandas()

    def conflicts_file(self) -> Path:
        """conflicts.parquet under `rule`, made again where it is damaged, missing or of another
        rule: a `flag` that was killed leaves it behind rule.json.

        Raises `ScanError` for a damaged part, and `ProbeError` where it cannot write.
        """
        rule, file = self.rule, self.path.absolute() / CONFLICTS
        with suppress(ScanError):
            stored = footer(file_inside(file.parent, CONFLICTS), conflicts_shape)
            by = (stored.schema.metadata or {}).get(RULE_KEY, rule.thresholds.encode())
            most = self.manifest["counts"]["trained_tokens"]
            if by == rule.thresholds.encode() and stored.rows <= most:
                return file
        with self._flagging(rule):
            return file

    def _require_own_conflicts(self) -> None:
        """The manifest has no hash of conflicts.parquet. Raises `ScanError`."""
        file, rule = self.conflicts_file(), self.rule
        with reading(file), pq.ParquetFile(file) as stored:
            tables = stored.iter_batches(), self._conflicts_by_part(rule)
            rows = ((row for table in kind for row in table.to_pylist()) for kind in tables)
            if any(a != b for a, b in zip_longest(*rows)):
                raise ScanError(
                    f"{file} does not hold what rule.json flags; remove it, and it is made again"
                )

    def quantiles(self, column: str, at: Sequence[float]) -> list[float]:
        """Exact quantiles of a float column over the whole scan, in constant memory."""
        return quantiles(lambda: (p[column].to_numpy() for p in self.token_parts([column])), at)

    @property
    def sql(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection with views `tokens` (with `conflict`), `examples`, `conflicts`.

        The same one as long as the scan has the same rule, whoever flags it.
        """
        rule, connections = self.rule, self._connections
        if rule not in connections:
            connections.clear()
            connections[rule] = self._connected(rule)
        return connections[rule]

    @cached_property
    def _connections(self) -> dict[ConflictRule, duckdb.DuckDBPyConnection]:
        return {}

    def _connected(self, rule: ConflictRule) -> duckdb.DuckDBPyConnection:
        files = {kind: self.part_files(kind) for kind in ("tokens", "examples")}
        beside = [] if alignment_manifest(self.path) is None else self.part_files("alignment")
        with reading(self.path):
            return connected({**files, "conflicts": [self.conflicts_file()]}, rule, beside)

    def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """What `sql` gives for a query. Raises `ScanError` where a file is damaged."""
        with reading(self.path):
            # fetchall: fetchone would leave the connection in use for whoever comes next.
            return list(self.sql.execute(query, list(values)).fetchall())

    def frame(self, query: str, values: Sequence[object] = ()) -> "pandas.DataFrame":
        """The same as a pandas frame."""
        with reading(self.path):
            return self.sql.execute(query, list(values)).df()

    def flag(self, rule: ConflictRule) -> "Scan":
        """Writes `rule.json` and `conflicts.parquet`, part by part; the scan under the new rule.

        The scan has the new rule once rule.json is there; see `conflicts_file`.

        Raises `ScanError` for a damaged part, or where the scan has not kept all of its tokens and
        was counted by another rule, and `ProbeError` where it cannot write.
        """
        config = self.manifest["config"]
        counted_by = ConflictRule.of(config.get("entropy_below"), config.get("prob_below"), None)
        if not self.keeps_all and rule != counted_by:
            raise ScanError(
                f"{self.place} was made with --keep-tokens {self.keep_tokens}, so its conflicts "
                f"were counted by its own rule; rescan to use another rule"
            )
        rule = self._resolved(rule)
        with self._flagging(rule):
            rule.save(self.path)
        self.give_back(CONFLICTS, RULE_FILE, *([CARD] if is_own_card(Folder(self.path)) else []))
        return Scan(self.path, self.manifest, self.store)

    def give_back(self, *names: str) -> None:
        """Puts files that were written into `path` into the store, where it mirrors one."""
        for name in names:
            if self.store is not None:
                self.store.put(name, (self.path / name).read_bytes())

    @contextmanager
    def _flagging(self, rule: ConflictRule) -> Iterator[None]:
        """conflicts.parquet is written aside, and takes its place at the end, after README.md."""
        schema = CONFLICT_SCHEMA.with_metadata({RULE_KEY: rule.thresholds})
        try:
            with written_aside(self.path / CONFLICTS) as aside:
                with pq.ParquetWriter(aside.absolute(), schema, **VIEWABLE) as writer:
                    for part in self._conflicts_by_part(rule):
                        writer.write_table(part)
                yield
                write_card(self, rule, pq.read_metadata(aside.absolute()).num_rows)
        except OSError as error:
            why = error.strerror or one_line(error)
            raise ProbeError(
                f"cannot write {CONFLICTS} or {RULE_FILE} to {self.path}: {why}"
            ) from error

    def _conflicts_by_part(self, rule: ConflictRule) -> Iterator[pa.Table]:
        columns = [n for n in CONFLICT_SCHEMA.names if n not in ("before", "after")]
        for index in range(len(self.manifest["parts"])):
            read = {*columns, "char_start", "char_end", *rule.reads}
            tokens = self.token_parts(sorted(read), index)
            flagged = pa.concat_tables(flagged_tokens(t, rule) for t in tokens).combine_chunks()
            examples = self.example_part(index, [*self.example_key, "text"])
            contexts = text_around(flagged, examples, self.example_key, self.path)
            flagged = flagged.select(columns)
            for side, name in enumerate(("before", "after")):
                flagged = flagged.append_column(name, pa.array(c[side] for c in contexts))
            yield flagged.cast(CONFLICT_SCHEMA)

    def _resolved(self, rule: ConflictRule) -> ConflictRule:
        """A rule by quantile gets the absolute thresholds that the scan has there."""
        if rule.quantile is None:
            return rule
        entropy, prob = (self.quantiles(c, [rule.quantile])[0] for c in ("entropy", "prob"))
        return ConflictRule(entropy, prob, rule.quantile)
