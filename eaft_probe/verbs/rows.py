"""The rows that a run is trained on: the same tokens that a scan scores, as padded batches."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.groups import groups
from eaft_probe.columns.measure import measure
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.data.batches import Window, batches, windows
from eaft_probe.data.render import Renderer
from eaft_probe.data.sources import Source
from eaft_probe.errors import BadInput, DataError, ProbeError, RowError, one_line
from eaft_probe.model.loading import CausalLM
from eaft_probe.objectives.trainer import GROUP_BITS, UNKNOWN
from eaft_probe.settings import ScanSettings
from eaft_probe.verbs.plan import AUTO_TOKENS
from eaft_probe.verbs.scan import data_format, open_data, selection


def read_windows(
    source: Source, settings: ScanSettings, model: CausalLM, lost: Counter[str]
) -> Iterator[tuple[int, Window]]:
    """(row number, window) of every row with a trained token; the others are counted in `lost`,
    or raise `BadInput` under --strict."""
    row_format = data_format(source, settings)
    renderer = Renderer(model.tokenizer, settings.train_on, settings.tool_calls)
    rows = selection(settings)
    for record in rows.records(source, rows.rows(source)):
        try:
            rendered = renderer(row_format(record.parse()))
        except RowError as error:
            if settings.strict:
                raise BadInput(f"row {record.row}: {error}") from error
            lost["rows left out; `eaft-probe render` says why"] += 1
            continue
        made, cut = windows(record.row, rendered, settings.max_length or model.max_length)
        if cut:
            lost["conversations cut at the right, at --max-length"] += 1
        yield from ((record.row, window) for window in made)


FEATURES = datasets.Features(
    {
        "row": datasets.Value("int64"),
        "start": datasets.Value("int32"),
        "input_ids": datasets.List(datasets.Value("int32")),
        "trained": datasets.List(datasets.Value("bool")),
        "length": datasets.Value("int32"),
    }
)


def _dataset(rows: Callable[[], Iterator[dict[str, Any]]], cache: str) -> Any:
    """The rows in arrow files. The fingerprint is given: hashing the generator would hash the
    model."""
    datasets.disable_progress_bars()
    try:
        return datasets.Dataset.from_generator(
            rows, features=FEATURES, cache_dir=cache, fingerprint=Path(cache).name
        )
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__
        if isinstance(cause, ProbeError):
            raise cause from None
        raise DataError(one_line(cause or error)) from error


@dataclass(frozen=True)
class Rows:
    """The windows of a data set, in files; and which group the sampled ones' tokens are of."""

    data: Any  # a `datasets.Dataset` with FEATURES
    source: str
    fingerprint: str
    lost: Counter[str]  # what was left out or cut, and how often
    groups: dict[tuple[int, int], torch.Tensor]  # (row, start) → (T,) uint8, see GROUP_BITS

    @classmethod
    def read(cls, data: Any, settings: ScanSettings, model: CausalLM, cache: str) -> "Rows":
        """Raises `DataError` where no row has a trained token."""
        source, lost = open_data(data, settings), Counter[str]()

        def rows() -> Iterator[dict[str, Any]]:
            for row, window in read_windows(source, settings, model, lost):
                yield {"row": row, "start": window.start, "input_ids": window.ids,
                       "trained": window.trained, "length": len(window.ids)}  # fmt: skip

        if next(rows(), None) is None:
            raise DataError("no row has a trained token; `eaft-probe render` shows why")
        lost.clear()  # of the look at the first rows
        made = _dataset(rows, cache).with_format("numpy")
        return cls(made, source.name, source.fingerprint(), lost, {})

    def collate(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Right-padded tensors (B, T); `group` only where tokens have been grouped."""
        length = max(len(i["input_ids"]) for i in items)
        batch = {
            "input_ids": torch.zeros(len(items), length, dtype=torch.long),
            "attention_mask": torch.zeros(len(items), length, dtype=torch.long),
            "trained": torch.zeros(len(items), length, dtype=torch.bool),
            "group": torch.full((len(items), length), UNKNOWN, dtype=torch.uint8),
        }
        for row, item in enumerate(items):
            own = len(item["input_ids"])
            batch["input_ids"][row, :own] = torch.as_tensor(item["input_ids"], dtype=torch.long)
            batch["trained"][row, :own] = torch.as_tensor(item["trained"])
            batch["attention_mask"][row, :own] = 1
            group = self.groups.get((int(item["row"]), int(item["start"])))
            if group is not None:
                batch["group"][row, :own] = group
        return batch | {"row": torch.tensor([int(i["row"]) for i in items])}


def group_tokens(rows: Rows, model: CausalLM, most: int, seed: int) -> None:
    """Sorts the tokens of `most` random windows into groups by the model as it is now."""
    count = min(most, len(rows.data))
    chosen = np.random.default_rng(seed).choice(len(rows.data), count, replace=False)
    items = [rows.data[int(i)] for i in sorted(chosen)]
    made = [
        Window(i, int(r["start"]), r["input_ids"], np.asarray(r["trained"], bool))
        for i, r in enumerate(items)
    ]
    statistics = [STATISTICS[n] for n in ("entropy", "prob", "rank")]
    for batch in batches(made, AUTO_TOKENS["cpu"], None):
        columns = measure(model, batch, statistics).columns
        found = groups(columns, ConflictRule())
        flags = sum((found[n].to(torch.uint8) * bit for n, bit in GROUP_BITS.items()),
                    torch.zeros(len(columns["prob"]), dtype=torch.uint8))  # fmt: skip
        for window in batch.window:
            own, flags = flags.split(
                [int(window.trained.sum()), len(flags) - int(window.trained.sum())]
            )
            group = torch.full((len(window.ids),), UNKNOWN, dtype=torch.uint8)
            group[torch.from_numpy(window.trained)] = own
            rows.groups[(int(items[window.example]["row"]), window.start)] = group
