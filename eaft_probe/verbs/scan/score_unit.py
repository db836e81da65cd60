"""One unit → one part: read, render, batch, measure, write."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from eaft_probe.analysis.partial_aggregates import unit_totals
from eaft_probe.analysis.token_filter import kept_tokens
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.measure import TokenColumns, measure
from eaft_probe.columns.statistics import Statistic
from eaft_probe.data.batches import Cost, TokenBatch, Window, batches, require_stride, windows
from eaft_probe.data.formats import Example, RowFormat
from eaft_probe.data.messages import Message
from eaft_probe.data.reading import Reader, Rejected
from eaft_probe.data.record import Record
from eaft_probe.data.rendering.render import Renderer, RenderOptions
from eaft_probe.data.rendering.rendered import Rendered
from eaft_probe.data.units import Unit
from eaft_probe.errors import BadInput, NonFinite, ProbeError, RowError
from eaft_probe.model.lengths import regimes
from eaft_probe.model.loading import CausalLM
from eaft_probe.progress import Progress
from eaft_probe.scans.folder import plan_digest, require_plan
from eaft_probe.scans.part_writer import part_folder, stored_report, write_part
from eaft_probe.scans.schemas import TEXT, examples_schema, tokens_schema
from eaft_probe.settings import ScanSettings, kept_share
from eaft_probe.storage.folder import Destination, Folder


class Scorer:
    """Scores units under one model. `score` depends on its unit and the settings alone."""

    def __init__(
        self,
        folder: Path,
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
        self._write(unit, rows)
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

    def _write(self, unit: Unit, rows: "UnitRows") -> None:
        tokens, examples, settings = rows.tokens_table(), rows.examples_table(), self.settings
        folder, totals = part_folder(self.folder, settings.keep_tokens), None
        last = unit.records[-1].row if unit.records else None
        if settings.keep_tokens != "all":
            rule = ConflictRule.given(settings.entropy_below, settings.prob_below, None)
            totals = unit_totals(tokens, examples, settings.keep, rule, self.special_tokens)
            share = kept_share(settings.keep_tokens)
            tokens, examples = kept_tokens(tokens, examples, rule, share)
        write_part(
            Folder(folder),
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
        folder = part_folder(self.folder, self.settings.keep_tokens)
        return set(stored_report(folder, unit).get("halved", ()))

    def _measured(
        self, batch: TokenBatch, name: str, counts: dict[str, int]
    ) -> list[tuple[TokenBatch, TokenColumns]]:
        """The batch's columns; in halves where a GPU has no memory for it, or once had none."""
        if name not in self.halved:
            try:
                return [(batch, measure(self.model, batch, self.statistics, self.reference))]
            except torch.OutOfMemoryError:
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


class UnitRows:
    """The rows of one unit on their way from records to the two tables of a part."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.records: list[Record] = []  # the scored ones, each with its rendering
        self.rendered: list[Rendered] = []
        self.kept: list[list[str | None]] = []
        self.windows: list[Window] = []
        self.rejected: list[dict[str, Any]] = []
        self.measured: list[tuple[NDArray[np.int64], NDArray[np.int64], TokenColumns]] = []
        self.counts = dict.fromkeys(
            (
                "rows",
                "examples",
                "rejected",
                "renderings",
                "tokens",
                "trained_tokens",
                "cut_examples",
                "cut_tokens",
                "special_in_content",
                "closed",
                "not_shown",
                "halved",
            ),
            0,
        )
        self.left_out = Counter[str]()  # role.field → characters that the template does not show

    def read(self, record: Record) -> None:
        """Renders one record, or rejects it with the reason."""
        self.counts["rows"] += 1
        found = self.scorer.reader(record)
        if isinstance(found, Rejected):
            self.counts["rejected"] += 1
            self.rejected.append(found.as_line())
            return
        row, renderings = found
        self.counts["examples"] += 1
        for rendered, made, cut in renderings:
            self._add(record, row, rendered, made, cut)

    def _add(
        self,
        record: Record,
        row: Mapping[str, Any],
        rendered: Rendered,
        made: list[Window],
        cut: int,
    ) -> None:
        self.windows += [replace(w, example=len(self.rendered)) for w in made]
        self.records.append(record)
        self.rendered.append(rendered)
        self.kept.append([_kept(row, name) for name in self.scorer.settings.keep])
        self.left_out.update(rendered.left_out)
        for name, more in {
            "renderings": 1,
            "tokens": len(rendered.ids),
            "trained_tokens": sum(int(w.trained.sum()) for w in made),
            "cut_examples": int(cut > 0),
            "cut_tokens": cut,
            "special_in_content": rendered.special_in_content,
            "closed": rendered.closed,
            "not_shown": rendered.not_shown,
        }.items():
            self.counts[name] += more

    def take(self, batch: TokenBatch, columns: TokenColumns) -> None:
        """Adds a batch's columns with the place of each token. Raises `NonFinite`."""
        places = [window.places() for window in batch.window]
        example, position = (np.concatenate(c) for c in zip(*places, strict=True))
        finite = [torch.isfinite(c) for c in columns.columns.values()]
        bad = np.flatnonzero(~torch.stack(finite).all(0).numpy())
        if len(bad):
            row = self.records[example[bad[0]]].row
            raise NonFinite(
                f"the model gives NaN or no probability at all at row {row}, token "
                f"{position[bad[0]]}; try --dtype float32, or check the weights"
            )
        self.measured.append((example, position, columns))

    def report(self) -> dict[str, Any]:
        return {"counts": self.counts, "left_out": self.left_out, "rejected": self.rejected}

    # --- the tables ---

    def tokens_table(self) -> pa.Table:
        """One row a scored token, sorted by (example, position); of examples that are one turn of
        a row each, by (example, turn, position)."""
        schema = self.scorer.schema
        if not self.measured:
            return schema.empty_table()
        example, position = (np.concatenate([m[i] for m in self.measured]) for i in (0, 1))
        order = np.lexsort((position, example))
        example, position = example[order], position[order]
        columns: dict[str, Any] = {
            s.name: np.concatenate([m[2][s.name].numpy() for m in self.measured])[order]
            for s in self.scorer.statistics
        }
        columns |= self._places(example, position)
        columns["token"] = self._texts(columns["token_id"])
        columns["top1"] = self._texts(columns["top1_id"])
        arrays = [
            pa.array(columns[f.name], f.type) if f.type != TEXT else columns[f.name] for f in schema
        ]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _places(
        self, example: NDArray[np.int64], position: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """The columns that say which token this is, from the renderings."""
        first = np.cumsum([0, *(len(r.ids) for r in self.rendered)])
        at = first[example] + position
        ids, turns, chars = (
            np.concatenate([getattr(r, name) for r in self.rendered])[at]
            for name in ("ids", "turn", "chars")
        )
        rows = np.array([r.row for r in self.records], np.int64)
        return {
            "example": rows[example],
            "turn": turns,
            "position": position.astype(np.int32),
            "token_id": ids,
            "char_start": chars[:, 0],
            "char_end": chars[:, 1],
        }

    def _texts(self, ids: NDArray[np.int32]) -> pa.DictionaryArray:
        known, codes = np.unique(ids, return_inverse=True)
        texts = [self.scorer.renderer.token_text(i) for i in known.tolist()]
        return pa.DictionaryArray.from_arrays(
            pa.array(codes.astype(np.int32)), pa.array(texts, pa.string())
        )

    def examples_table(self) -> pa.Table:
        """One row a scored example, with the means over its trained tokens."""
        count = len(self.rendered)
        places = [m[0] for m in self.measured] or [np.zeros(0, np.int64)]
        example = np.concatenate(places)
        trained = np.bincount(example, minlength=count)

        def mean(name: str, sign: int) -> NDArray[np.float32]:
            values = [m[2][name].numpy() for m in self.measured] or [np.zeros(0)]
            total = np.bincount(example, np.concatenate(values).astype(np.float64), count)
            return (sign * total / np.maximum(trained, 1)).astype(np.float32)

        schema = examples_schema(self.scorer.settings.keep)
        columns = [
            [r.row for r in self.records],
            [r.of_turn for r in self.rendered],
            [
                r.key or str(record.row)
                for r, record in zip(self.rendered, self.records, strict=True)
            ],
            [r.text for r in self.rendered],
            [_messages_json(r.messages) for r in self.rendered],
            [len(r.ids) for r in self.rendered],
            trained,
            mean("logprob", -1),
            mean("entropy", 1),
            *([row[i] for row in self.kept] for i in range(len(self.scorer.settings.keep))),
        ]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
        return pa.Table.from_arrays(arrays, schema=schema)


def _kept(row: Mapping[str, Any], name: str) -> str | None:
    """A pass-through value: text as it is (half surrogates escaped), anything else as JSON."""
    value = row.get(name)
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode()


def _messages_json(messages: Sequence[Message]) -> str:
    listed = [m.as_dict() | ({} if m.trained is None else {"train": m.trained}) for m in messages]
    return json.dumps(listed, ensure_ascii=False, default=str)
