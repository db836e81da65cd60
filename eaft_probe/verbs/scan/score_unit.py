"""One unit → one part: read, render, batch, measure, write."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eaft_probe.analysis.partial_aggregates import unit_totals
from eaft_probe.analysis.token_filter import kept_tokens
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.measure import TokenColumns, measure
from eaft_probe.columns.statistics import Statistic
from eaft_probe.data.batches import Cost, TokenBatch, Window, batches, require_stride, windows
from eaft_probe.data.formats import Example, RowFormat
from eaft_probe.data.reading import Reader
from eaft_probe.data.rendering.render import Renderer, RenderOptions
from eaft_probe.data.rendering.rendered import Rendered
from eaft_probe.data.units import Unit
from eaft_probe.errors import BadInput, ProbeError, RowError
from eaft_probe.model.lengths import regimes
from eaft_probe.model.loading import CausalLM
from eaft_probe.progress import Progress
from eaft_probe.scans.folder import plan_digest, require_plan
from eaft_probe.scans.part_writer import part_folder, stored_report, write_part
from eaft_probe.scans.schemas import tokens_schema
from eaft_probe.settings import ScanSettings, kept_share
from eaft_probe.storage.folder import Destination, Folder
from eaft_probe.verbs.scan.unit_rows import UnitRows


class Scorer:
    """Scores units under one model. `score` depends on its unit and the settings alone."""

    def __init__(
        self,
        folder: Path | None,
        model: CausalLM,
        reference: CausalLM | None,
        row_format: RowFormat,
        statistics: Sequence[Statistic],
        settings: ScanSettings,
        budget: int,
        progress: Progress,
        plan: Mapping[str, Any] | None = None,
        plan_in: Destination | None = None,
    ) -> None:
        self.folder, self.model, self.reference = folder, model, reference
        self.plan, self.plan_in = plan, plan_in  # which every part is of, and where it must stand
        self.halved: set[str] = set()  # batches of the unit at hand
        self.statistics, self.settings = statistics, settings
        self.budget, self.progress = budget, progress
        self.renderer = Renderer(model.tokenizer, RenderOptions.of(settings))
        self.reader = Reader(row_format, self._in_windows, settings.strict)
        self.max_length = settings.max_length or model.max_length
        if self.max_length > model.max_length:
            raise BadInput(
                f"--max-length {self.max_length} is more than {settings.model} reads "
                f"({model.max_length} tokens)"
            )
        require_stride(settings.stride, self.max_length)
        shares = model.cost if reference is None or reference.cost else None
        self.cost = Cost(*shares) if shares else None
        self.regime = regimes(model.borders, reference.borders if reference else ())
        self.schema = tokens_schema(statistics)
        self.column_names = self.schema.names
        self.special_tokens = set(model.tokenizer.get_added_vocab())

    def read(self, unit: Unit) -> "UnitRows":
        """The unit's rows as tokens; in whichever thread, but one at a time."""
        rows = UnitRows(self)
        for record in unit.records:
            rows.read(record)
        return rows

    def score(self, unit: Unit, rows: "UnitRows") -> None:
        """Writes the unit's part, whole or not at all. Raises `NonFinite` and `OSError`."""
        self.halved = self._halved(unit.index)
        left = len(unit.records)
        for number, batch in enumerate(batches(rows.windows, self.budget, self.cost, self.regime)):
            for piece, columns in self._measured(batch, f"{unit.index}/{number}/", rows.counts):
                rows.take(piece, columns)
                fresh = min(left, len(piece.window))
                left -= fresh
                self.progress.advance(fresh, int(piece.trained.sum()))
        if self.folder is not None:
            self._write(self.folder, unit, rows)
        self.progress.advance(left, 0)

    def _in_windows(self, example: Example) -> list[tuple[Rendered, list[Window], int]]:
        """Its renderings that have a token to score, as windows, and how many tokens each loses."""
        found = []
        for rendered in self.renderer.renderings(example):
            if int(rendered.ids.max()) >= self.model.head.vocab_size:
                raise RowError(f"token id {rendered.ids.max()} is beyond the model's vocabulary")
            made, cut = windows(0, rendered, self.max_length, self.settings.stride)
            if made:
                found.append((rendered.cut(self.max_length) if cut else rendered, made, cut))
        if not found:
            raise RowError(f"no trained token within {self.max_length} tokens")
        return found

    def _write(self, folder: Path, unit: Unit, rows: "UnitRows") -> None:
        tokens, examples, settings = rows.tokens_table(), rows.examples_table(), self.settings
        totals = None
        last = unit.records[-1].row if unit.records else None
        if settings.keep_tokens != "all":
            rule = ConflictRule.given(settings.entropy_below, settings.prob_below, None)
            totals = unit_totals(tokens, examples, settings.keep, rule, self.special_tokens)
            share = kept_share(settings.keep_tokens)
            tokens, examples = kept_tokens(tokens, examples, rule, share)
        write_part(
            Folder(part_folder(folder, settings.keep_tokens)),
            unit.index,
            tokens,
            examples,
            self._report(rows),
            self._required_plan(),
            totals,
            last,
        )

    def _required_plan(self) -> str | None:
        """Its digest. Raises `ScanError` where another run has replaced the scan by now."""
        if self.plan is not None and self.plan_in is not None:
            require_plan(self.plan_in, self.plan)
        return None if self.plan is None else plan_digest(self.plan)

    def _report(self, rows: "UnitRows") -> dict[str, Any]:
        return rows.report() | ({"halved": sorted(self.halved)} if self.halved else {})

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest says of the model and of what it wrote."""
        return {
            "columns": self.column_names,
            "special_tokens": sorted(self.special_tokens),
            "template_limits": self.renderer.limits,
            "unshared": self._unshared(),
            "model": {
                "dtype": str(self.model.dtype).removeprefix("torch."),
                "parameters": self.model.parameters,
                "vocab_size": self.model.head.vocab_size,
                "hidden_size": self.model.head.weight.shape[1],
                "max_length": self.max_length,
            },
        }

    def _unshared(self) -> str | None:
        """Why rows with a common beginning are read whole, in a sentence."""
        for model in (self.model, self.reference):
            if model is not None and model.unshared is not None:
                return (
                    f"{model.place.name} reads common beginnings of rows again for every row: "
                    f"{model.unshared}"
                )
        return None

    def _halved(self, unit: int) -> set[str]:
        """The batches that were halved where the unit was scored before, and is damaged: other
        batches give other last digits."""
        if self.folder is None:
            return set()
        folder = part_folder(self.folder, self.settings.keep_tokens)
        return set(stored_report(folder, unit).get("halved", ()))

    def _measured(
        self, batch: TokenBatch, name: str, counts: dict[str, int]
    ) -> list[tuple[TokenBatch, TokenColumns]]:
        """The batch's columns; in halves where a GPU has no memory for it, or once had none."""
        if name not in self.halved:
            try:
                return [(batch, measure(self.model, batch, self.statistics, self.reference))]
            except torch.OutOfMemoryError as error:
                if self.settings.tp:  # the other ranks wait for this one in the middle of a batch
                    raise ProbeError(
                        "out of memory under --tp; lower --tokens-per-batch"
                    ) from error
                self._remember(name, batch)
        counts["halved"] += 1
        left, right = batch.halves()
        return [
            *self._measured(left, name + "0", counts),
            *self._measured(right, name + "1", counts),
        ]

    def _remember(self, name: str, batch: TokenBatch) -> None:
        if len(batch.window) == 1:
            raise ProbeError("out of memory on a single example; lower --max-length")
        torch.cuda.empty_cache()
        self.halved.add(name)
