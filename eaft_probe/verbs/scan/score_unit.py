"""One unit → one part: read, render, batch, measure, write."""

from collections.abc import Callable, Iterator, Sequence

import torch

from eaft_probe.analysis.partial_aggregates import unit_totals
from eaft_probe.analysis.token_filter import kept_tokens
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.measure import TokenColumns
from eaft_probe.columns.statistics import Statistic
from eaft_probe.data.answers import Answers
from eaft_probe.data.batches import Cost, TokenBatch, Window, batches, require_stride, windows
from eaft_probe.data.formats import Example, RowFormat
from eaft_probe.data.reading import Reader
from eaft_probe.data.rendering.render import Renderer, RenderOptions
from eaft_probe.data.rendering.rendered import Rendered
from eaft_probe.data.units import Unit
from eaft_probe.engines.vllm_model import VllmModel
from eaft_probe.errors import BadInput, ProbeError, RowError
from eaft_probe.model.lengths import regimes
from eaft_probe.model.loading import CausalLM
from eaft_probe.progress import Progress
from eaft_probe.scans.part_writer import stored_report
from eaft_probe.scans.schemas import tokens_schema
from eaft_probe.scans.upload import Workspace
from eaft_probe.settings import ScanSettings, kept_share
from eaft_probe.verbs.scan.unit_rows import UnitRows

Measure = Callable[[TokenBatch], TokenColumns]


class Scorer:
    """Scores units under one model. `score` depends on its unit and the settings alone."""

    def __init__(
        self,
        work: Workspace | None,
        model: CausalLM | VllmModel,
        reference: CausalLM | None,
        measure: Measure,
        row_format: RowFormat,
        statistics: Sequence[Statistic],
        settings: ScanSettings,
        budget: int,
        progress: Progress,
        measure_alone: Measure | None = None,
    ) -> None:
        """`work`: where the parts go; None where they are not written. `measure_alone`: gives
        `logprob`, of answers without their prompts."""
        self.work, self.model, self.reference = work, model, reference
        self.measure, self.measure_alone = measure, measure_alone
        self.halved: set[str] = set()  # batches of the unit at hand
        self.statistics, self.settings = statistics, settings
        self.budget, self.progress = budget, progress
        self.renderer = Renderer(model.tokenizer, RenderOptions.of(settings))
        self.row_format = row_format
        self.max_length = settings.max_length or model.max_length
        if self.max_length > model.max_length:
            raise BadInput(
                f"--max-length {self.max_length} is more than {settings.model} reads "
                f"({model.max_length} tokens)"
            )
        require_stride(settings.stride, self.max_length)
        self.answers = Answers(self.renderer, self.max_length, settings.stride)
        shares = model.cost if reference is None or reference.cost else None
        self.cost = Cost(*shares) if shares else None
        self.regime = regimes(model.borders, reference.borders if reference else ())
        self.schema = tokens_schema(statistics)
        self.special_tokens = set(model.tokenizer.get_added_vocab())

    @property
    def reader(self) -> Reader[list[tuple[Rendered, list[Window], int]]]:
        """Made each time: as an attribute it would close a cycle, which keeps the model in memory
        until the garbage collector runs."""
        return Reader(self.row_format, self._in_windows, self.settings.strict)

    def read(self, unit: Unit) -> "UnitRows":
        """The unit's rows as tokens; in whichever thread, but one at a time."""
        rows = UnitRows(self)
        for record in unit.records:
            rows.read(record)
        return rows

    def score(self, unit: Unit, rows: "UnitRows") -> None:
        """Writes the unit's part, whole or not at all. Raises `NonFinite` and `OSError`."""
        # Other batches give other last digits: what was halved where the unit was scored before,
        # and is damaged, is halved again.
        report = stored_report(self.work.units, unit.index) if self.work else {}
        self.halved = set(report.get("halved", ()))
        rows_left = len(unit.records)
        for piece, columns in self._pieces(rows.windows, self.measure, f"{unit.index}/", rows):
            rows.take(piece, columns)
            done = min(rows_left, len(piece.window))
            rows_left -= done
            self.progress.advance(done, int(piece.trained.sum()))
        if self.measure_alone is not None:
            name = f"{unit.index}/alone/"
            for pair in self._pieces(rows.answers, self.measure_alone, name, rows):
                rows.take_alone(*pair)
        if self.work is not None:
            self._write(self.work, unit, rows)
        self.progress.advance(rows_left, 0)

    def _in_windows(self, example: Example) -> list[tuple[Rendered, list[Window], int]]:
        """Its renderings that have a token to score, as windows, and how many tokens each loses."""
        cut_renderings = []
        for rendered in self.renderer.renderings(example):
            if int(rendered.ids.max()) >= self.model.head.vocab_size:
                raise RowError(f"token id {rendered.ids.max()} is beyond the model's vocabulary")
            pieces, cut = windows(0, rendered, self.max_length, self.settings.stride)
            if pieces:
                shown = rendered.cut(self.max_length) if cut else rendered
                cut_renderings.append((shown, pieces, cut))
        if not cut_renderings:
            raise RowError(f"no trained token within {self.max_length} tokens")
        return cut_renderings

    def _write(self, work: Workspace, unit: Unit, rows: "UnitRows") -> None:
        tokens, examples, settings = rows.tokens_table(), rows.examples_table(), self.settings
        report = rows.report() | ({"halved": sorted(self.halved)} if self.halved else {})
        totals = None
        last_row = unit.records[-1].row if unit.records else None
        if settings.keep_tokens != "all":
            rule = ConflictRule.of(settings.entropy_below, settings.prob_below, None)
            totals = unit_totals(tokens, examples, settings.keep, rule, self.special_tokens)
            share = kept_share(settings.keep_tokens)
            tokens, examples = kept_tokens(tokens, examples, rule, share)
        work.write(unit.index, tokens, examples, report, totals, last_row)

    @property
    def facts(self) -> dict[str, object]:
        """What the manifest says of the model and of what it wrote."""
        return {
            "columns": self.schema.names,
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
        reasons = (
            f"{m.name} reads common beginnings of rows again for every row: {m.unshared}"
            for m in (self.model, self.reference)
            if m is not None and m.unshared is not None
        )
        return next(reasons, None)

    def _pieces(
        self, windows: Sequence[Window], measure: Measure, name: str, rows: "UnitRows"
    ) -> Iterator[tuple[TokenBatch, TokenColumns]]:
        """The windows in batches, measured; `name`: of the batches of this pass."""
        for number, batch in enumerate(batches(windows, self.budget, self.cost, self.regime)):
            yield from self._measured(batch, measure, f"{name}{number}/", rows.counts)

    def _measured(
        self, batch: TokenBatch, measure: Measure, name: str, counts: dict[str, int]
    ) -> list[tuple[TokenBatch, TokenColumns]]:
        """The batch's columns; in halves where a GPU has no memory for it, or once had none."""
        if name not in self.halved:
            try:
                return [(batch, measure(batch))]
            except torch.OutOfMemoryError as error:
                if self.settings.tp:  # the other ranks wait for this one in the middle of a batch
                    raise ProbeError(
                        "out of memory under --tp; lower --tokens-per-batch"
                    ) from error
                if len(batch.window) == 1:
                    raise ProbeError(
                        "out of memory on a single example; lower --max-length"
                    ) from error
                torch.cuda.empty_cache()
                self.halved.add(name)
        counts["halved"] += 1
        left, right = batch.halves()
        return [
            *self._measured(left, measure, name + "0", counts),
            *self._measured(right, measure, name + "1", counts),
        ]
