"""The rows of one unit on their way from records to the two tables of a part."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from eaft_probe.columns.measure import TokenColumns
from eaft_probe.data.batches import TokenBatch, Window
from eaft_probe.data.messages import Message
from eaft_probe.data.reading import Rejected
from eaft_probe.data.record import Record
from eaft_probe.data.rendering.rendered import Rendered
from eaft_probe.errors import NonFinite
from eaft_probe.scans.manifest import SUMS
from eaft_probe.scans.schemas import examples_schema

if TYPE_CHECKING:
    from eaft_probe.verbs.scan.score_unit import Scorer


Measured = tuple[NDArray[np.int64], NDArray[np.int64], TokenColumns]  # (N,) example, position


class UnitRows:
    """The rows of one unit on their way from records to the two tables of a part."""

    def __init__(self, scorer: "Scorer") -> None:
        self.scorer = scorer
        self.records: list[Record] = []  # the scored ones, each with its rendering
        self.rendered: list[Rendered] = []
        self.kept: list[list[str | None]] = []
        self.windows: list[Window] = []
        self.answers: list[Window] = []  # without their prompts, where those are measured, too
        self.rejected: list[dict[str, Any]] = []
        self.measured: list[Measured] = []
        self.alone: list[Measured] = []
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
        self.not_read = Counter[str]()  # column of a prompt or an answer → rows that leave it aside

    def read(self, record: Record) -> None:
        """Renders one record, or rejects it with the reason."""
        self.counts["rows"] += 1
        result = self.scorer.reader(record)
        if isinstance(result, Rejected):
            self.counts["rejected"] += 1
            self.rejected.append(result.as_line())
            return
        row, renderings = result
        self.counts["examples"] += 1
        self.not_read.update(renderings[0][0].not_read)
        for rendering in renderings:
            self._add(record, row, *rendering)

    def _add(
        self,
        record: Record,
        row: Mapping[str, object],
        rendered: Rendered,
        windows: list[Window],
        cut: int,
    ) -> None:
        self.windows += [replace(w, example=len(self.rendered)) for w in windows]
        if self.scorer.measure_alone is not None:
            self.answers += self.scorer.answers(len(self.rendered), rendered)
        self.records.append(record)
        self.rendered.append(rendered)
        self.kept.append([_kept(row, name) for name in self.scorer.settings.keep])
        self.left_out.update(rendered.left_out)
        for name, more in {
            "renderings": 1,
            "tokens": len(rendered.ids),
            "trained_tokens": sum(int(w.trained.sum()) for w in windows),
            "cut_examples": int(cut > 0),
            "cut_tokens": cut,
            "special_in_content": rendered.special_in_content,
            "closed": rendered.closed,
            "not_shown": rendered.not_shown,
        }.items():
            self.counts[name] += more

    def take(self, batch: TokenBatch, columns: TokenColumns) -> None:
        """Adds a batch's columns. Raises `NonFinite`."""
        self.measured.append(self._placed(batch, columns))

    def take_alone(self, batch: TokenBatch, columns: TokenColumns) -> None:
        """The same of a batch of answers without their prompts."""
        self.alone.append(self._placed(batch, columns))

    def _placed(self, batch: TokenBatch, columns: TokenColumns) -> Measured:
        """With the place of each token."""
        places = [window.places() for window in batch.window]
        example, position = (np.concatenate(c) for c in zip(*places, strict=True))
        finite = [torch.isfinite(c) for c in columns.columns.values()]
        bad = np.flatnonzero(~torch.stack(finite).all(0).numpy())
        if len(bad):
            row = self.records[example[bad[0]]].row
            raise NonFinite(
                f"the model gives NaN or no probability at all in row {row} at token "
                f"{position[bad[0]]}; try --dtype float32, or check the weights"
            )
        return example, position, columns

    def report(self) -> dict[str, object]:
        """What the manifest and rejected.jsonl will say of the unit."""
        sums = {name: getattr(self, name) for name in SUMS}
        return {"counts": self.counts, **sums, "rejected": self.rejected}

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
            if not s.alone
        }
        if self.scorer.measure_alone is not None:
            columns["logprob_alone"] = self._logprob_alone(example, position)
        columns |= self._places(example, position)
        texts = {"token": columns["token_id"], "top1": columns["top1_id"]}
        columns |= {name: self._texts(ids) for name, ids in texts.items()}
        return pa.table({name: columns[name] for name in schema.names}, schema=schema)

    def _logprob_alone(self, example: NDArray[np.int64], position: NDArray[np.int64]) -> pa.Array:
        """Null where nothing comes before the first token of an answer."""
        first = np.cumsum([0, *(len(r.ids) for r in self.rendered)])
        values = np.full(first[-1], np.nan, np.float32)
        for of, at, columns in self.alone:
            values[first[of] + at] = columns["logprob"].numpy()
        return pa.array(values[first[example] + position], from_pandas=True)

    def _places(
        self, example: NDArray[np.int64], position: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """The columns that say which token this is, from the renderings."""
        first = np.cumsum([0, *(len(r.ids) for r in self.rendered)])
        ids, turns, chars = (
            np.concatenate([getattr(r, name) for r in self.rendered])[first[example] + position]
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
        distinct, codes = np.unique(ids, return_inverse=True)
        texts = [self.scorer.renderer.token_text(i) for i in distinct.tolist()]
        return pa.DictionaryArray.from_arrays(
            pa.array(codes.astype(np.int32)), pa.array(texts, pa.string())
        )

    def examples_table(self) -> pa.Table:
        """One row a scored example, with the means over its trained tokens."""
        count, schema = len(self.rendered), examples_schema(self.scorer.settings.keep)
        example = np.concatenate([np.zeros(0, np.int64), *(m[0] for m in self.measured)])
        trained = np.bincount(example, minlength=count)

        def mean(name: str, sign: int) -> NDArray[np.float32]:
            values = np.concatenate([np.zeros(0), *(m[2][name].numpy() for m in self.measured)])
            totals = sign * np.bincount(example, values, count)
            return (totals / np.maximum(trained, 1)).astype(np.float32)

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
        return pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)


def _kept(row: Mapping[str, object], name: str) -> str | None:
    """A pass-through value: text as it is (half surrogates escaped), anything else as JSON."""
    value = row.get(name)
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode()


def _messages_json(messages: Sequence[Message]) -> str:
    listed = [m.as_dict() | ({} if m.trained is None else {"train": m.trained}) for m in messages]
    return json.dumps(listed, ensure_ascii=False, default=str)
