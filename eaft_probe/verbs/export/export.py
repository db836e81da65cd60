"""`export`: the data of a finished scan back, or handed on to a trainer.

open the scan → choose rows by SQL and rank → read the source again → rows, tokens or messages →
a file of the format that its ending says. One row is held at a time.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from eaft_probe.analysis.scores import SCORES
from eaft_probe.data.formats import Example, RowFormat
from eaft_probe.data.record import Record
from eaft_probe.data.sources import require_outside
from eaft_probe.errors import BadInput, RowError, ScanError
from eaft_probe.progress import Progress, Silent
from eaft_probe.quantities import counted_noun
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import ExportSettings, make_settings
from eaft_probe.storage.remote import Store, local
from eaft_probe.verbs.export.choice import PREFIX, Choice, Probe, choose, probe_schema
from eaft_probe.verbs.export.files import Row, require_target, write
from eaft_probe.verbs.export.messages import conversation
from eaft_probe.verbs.export.renderings import Gate, Rendering, renderings
from eaft_probe.verbs.export.source import (
    ScannedSource,
    known_schema,
    require_unchanged,
    scanned_sources,
)

if TYPE_CHECKING:
    from eaft_probe.verbs.export.tokens import TokenRows


@dataclass(frozen=True)
class Export:
    """What was written."""

    path: Path
    kind: str  # --for
    chosen: int  # rows of the data
    rejected: int  # rows that were not scored; `rows` has them, with their reason
    written: int = 0  # rows of the file: long texts and single turns give several
    trained_tokens: int = 0  # of the file, and of the same rows before --masked
    scored_tokens: int = 0
    lost: Counter[str] = field(default_factory=Counter)  # what the format cannot say

    def summary(self) -> dict[str, object]:
        """What `--json` prints."""
        tokens = ("trained_tokens", "scored_tokens") if self.kind != "rows" else ()
        names = ("kind", "chosen", "rejected", "written", *tokens)
        lost = {what.format(s="s"): n for what, n in self.lost.items()}
        return {"path": str(self.path), **{n: getattr(self, n) for n in names}, "lost": lost}

    def __str__(self) -> str:
        rows = f"{counted_noun(self.written, 'row')} written to {self.path}"
        if self.kind == "rows":
            return rows
        are = "is" if 1 in (self.trained_tokens, self.scored_tokens) else "are"
        scored = counted_noun(self.scored_tokens, "token")
        return f"{rows}; {self.trained_tokens:,} of {scored} {are} trained"

    def notes(self) -> list[str]:
        """What was left out, or is not said by the file."""
        lost = [f"{n:,} {what.format(s='s' * (n != 1))}" for what, n in self.lost.items()]
        notes = [f"the file does not say it all: {'; '.join(lost)}"] if lost else []
        if self.rejected and self.kind != "rows":
            notes.append(f"{counted_noun(self.rejected, 'rejected row')} left out")
        return notes


def export(
    scan: Scan | str | Path,
    out: str | Path,
    *,
    data: Any = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Export:
    """Writes the rows of a finished scan to `out`, as they were or as a trainer reads them.

    `scan`: a scan or its folder.
    `out`: its ending says the format: .jsonl, .json, .csv, .parquet, .arrow; without one it is a
    folder as `datasets.save_to_disk` writes it.
    `data`: the data of the scan where they have moved, or were rows in memory; of a merged scan a
    list of several.

    Every other argument is a field of `ExportSettings` and a flag of `eaft-probe export`, with
    `for_` for --for. Raises `BadInput` (the scan, other data, an existing file, a condition, rows
    that the format cannot hold) or `ProbeError`.
    """
    chosen: ExportSettings = make_settings(ExportSettings, settings)
    opened = scan if isinstance(scan, Scan) else Scan.open(scan)
    if store := Store.of(out):
        raise BadInput(f"--out {store.shown} is a URL; write to a path on this machine")
    path, progress = local(out), progress or Silent()
    _require_usable(opened, path, chosen)
    found = scanned_sources(opened, data)
    for one in found:
        require_outside(path, one.source.name)
        _require_kept(path, one.source.on_disk, f"the data, {one.source.name}")
    with TemporaryDirectory(prefix="eaft-probe-") as folder:
        choice = choose(opened, chosen, Path(folder))
        progress.start("export", choice.count)
        export = _Writing(opened, chosen, found, choice, path).run()
        progress.advance(choice.count, export.scored_tokens)
    require_unchanged(found)
    for note in export.notes():
        progress.note(note)
    return export


def _require_usable(scan: Scan, path: Path, settings: ExportSettings) -> None:
    """Raises `BadInput`, before the long work."""
    scan.require_all("export")
    require_target(path, settings.for_ != "rows", settings.overwrite)
    if path.absolute().resolve().is_relative_to(scan.path.resolve()):
        raise BadInput(f"--out {path} lies in the scan; choose another path")
    _require_kept(path, [scan.path], "the scan")
    row_format = str(scan.manifest["data"]["format"])
    if settings.for_ not in ("rows", "tokens") and row_format in PLAIN:
        raise BadInput(
            f"--for {settings.for_} writes conversations, but the rows of {scan.place} are of "
            f"format {row_format!r}; use --for tokens"
        )


def _require_kept(path: Path, needed: Iterable[Path], name: str) -> None:
    """Raises `BadInput` where what replaces `path` would take something needed with it."""
    target = path.absolute().resolve()
    if any(file.absolute().resolve().is_relative_to(target) for file in needed):
        raise BadInput(f"--out {path} holds {name}, which would be lost; choose another path")


PLAIN = ("text", "labelled")  # formats without messages of their own
GIVEN = "row{s} with chat_template_kwargs, which the trainer does not get"
TEMPLATED = "row{s} of plain text, which the trainer puts into its chat template"


class _Writing:
    """One pass over the chosen rows, or two where the file's columns must be known first."""

    def __init__(
        self,
        scan: Scan,
        settings: ExportSettings,
        found: list[ScannedSource],
        choice: Choice,
        path: Path,
    ) -> None:
        self.scan, self.settings, self.found, self.choice = scan, settings, found, choice
        self.path, self.kind = path, settings.for_
        self.gate = None if self.kind == "rows" else Gate.of(scan, settings)
        self.tokens = self._token_rows() if self.kind == "tokens" else None
        scores = (f"{PREFIX}{name}" for name in SCORES)  # of an earlier export, too
        self.added = {*probe_schema(scan).names, *scores}
        self.counts = Counter[str]()
        self.lost = Counter[str]()

    def _token_rows(self) -> "TokenRows":
        from eaft_probe.verbs.export.tokens import TokenRows  # here: it loads torch

        return TokenRows.of(self.scan, self.settings)

    def run(self) -> Export:
        write(self.path, self.rows, self._schema(), self.lost)
        kept, scored = self.counts["kept"], self.counts["scored"]
        chosen, written = self.choice.count, self.counts["written"]
        counts = (chosen, self.choice.rejected, written, kept, scored)
        return Export(self.path, self.kind, *counts, lost=+self.lost)

    def _schema(self) -> pa.Schema | None:
        if self.tokens is not None:
            return self.tokens.schema
        known = known_schema(self.found) if self.kind == "rows" else None
        if known is None:
            return None
        own = [column for column in known if column.name not in self.added]
        return pa.schema([*own, *probe_schema(self.scan)])

    def rows(self) -> Iterator[Row]:
        """The rows of the file, each time from the beginning."""
        self.counts.clear()
        self.lost.clear()
        for row in self._written():
            self.counts["written"] += 1
            yield row

    def _written(self) -> Iterator[Row]:
        records = (record for one in self.found for record in one.records())
        read = renderings(self.scan, self.gate) if self.gate else iter(())
        rendering = next(read, None)
        for probe in self.choice:
            number = probe["probe_example"]
            record = next((r for r in records if r.row == number), None)
            if record is None:
                raise ScanError(f"{self.scan.path} is damaged: its data have no row {number}")
            if self.gate is None:
                yield self._with_scores(record, probe)
            while rendering is not None and rendering.example <= number:
                if rendering.example == number:
                    yield from self._handed_on(rendering, self._example(record))
                rendering = next(read, None)

    def _example(self, record: Record) -> Example:
        """The row understood once more, by one of the formats that the scan read."""
        config = self.scan.manifest["config"]
        columns, roles = (config.get(name) or {} for name in ("columns", "roles"))
        for name in str(self.scan.manifest["data"]["format"]).split(" + "):
            with suppress(RowError):
                return RowFormat(name, columns, roles)(record.parse())
        raise ScanError(f"{self.scan.path} is damaged: row {record.row} is of another format")

    def _handed_on(self, rendering: Rendering, example: Example) -> Iterator[Row]:
        self.counts["scored"] += len(rendering.kept)
        trained = int((rendering.kept & (rendering.gates != 0)).sum())
        if self.tokens is not None:
            ids = example.labelled[0] if example.labelled else None
            rows = self.tokens(rendering, ids, self.lost)
        else:
            self.lost[TEMPLATED] += example.plain
            self.lost[GIVEN] += bool(example.template_arg)
            rows = conversation(rendering, example.tools, self.kind, self.lost)
        for row in rows:
            self.counts["kept"] += trained
            trained = 0  # all of them are counted with the first row
            yield row

    def _with_scores(self, record: Record, probe: Probe) -> Row:
        """The row as it was, and its `probe_` columns; of one that cannot be read those alone."""
        row: Row = {}
        with suppress(RowError):
            row = {k: v for k, v in record.parse().items() if k not in self.added}
        return row | probe
