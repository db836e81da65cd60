"""The rows that a run is trained on: the same tokens that a scan scores, as padded batches."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.groups import groups
from eaft_probe.columns.measure import measure
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.data.batches import Window, batches, require_stride, windows
from eaft_probe.data.opening import data_format, selection
from eaft_probe.data.reading import Reader, Rejected
from eaft_probe.data.rendering.render import Renderer, RenderOptions
from eaft_probe.data.rendering.rendered import Rendered
from eaft_probe.data.sources import Source
from eaft_probe.errors import DataError, ProbeError, one_line
from eaft_probe.model.lengths import regimes
from eaft_probe.model.loading import CausalLM
from eaft_probe.objectives.step_metrics import GROUP_BITS, UNKNOWN
from eaft_probe.settings import ScanSettings
from eaft_probe.verbs.scan.plan import auto_tokens
from eaft_probe.verbs.train.scan_features import Beside


def read_windows(
    source: Source, settings: ScanSettings, model: CausalLM, lost: Counter[str]
) -> Iterator[tuple[Rendered, Window]]:
    """Every rendering with a trained token, in its windows, whose `example` is the row's number;
    what is not trained is counted in `lost`, or raises `BadInput` under --strict."""
    renderer = Renderer(model.tokenizer, RenderOptions.of(settings))
    reader = Reader(data_format(source, settings), renderer.renderings, settings.strict)
    rows, longest = selection(settings), settings.max_length or model.max_length
    require_stride(settings.stride, longest)
    for record in rows.records(source, rows.rows(source)):
        found = reader(record)
        if isinstance(found, Rejected):
            lost["rows left out; `eaft-probe render` says why"] += 1
            continue
        for rendered in found[1]:
            made, cut = windows(record.row, rendered, longest, settings.stride)
            if cut:
                lost["conversations cut at the right, at --max-length"] += 1
            yield from ((rendered, window) for window in made)


FEATURES = {
    "row": datasets.Value("int64"),
    "turn": datasets.Value("int16"),
    "start": datasets.Value("int32"),
    "input_ids": datasets.List(datasets.Value("int32")),
    "trained": datasets.List(datasets.Value("bool")),
    "length": datasets.Value("int32"),
}


def _dataset(
    first: dict[str, Any], rows: Callable[[], Iterator[dict[str, Any]]], cache: str
) -> Any:
    """The rows, of which `first` is one, in arrow files. The fingerprint is given: hashing the
    generator would hash the model."""
    datasets.disable_progress_bars()
    beside = {
        n: datasets.List(datasets.Value(str(c.dtype)))
        for n, c in first.items()
        if n not in FEATURES
    }
    try:
        return datasets.Dataset.from_generator(
            rows,
            features=datasets.Features(FEATURES | beside),
            cache_dir=cache,
            fingerprint=Path(cache).name,
        )
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__
        if isinstance(cause, ProbeError):
            raise cause from None
        said = one_line(cause or error)
        if isinstance(cause, OSError):
            said = f"the tokens cannot be kept in {cache}: {said}; TMPDIR names another place"
        raise DataError(said) from error


PLACE = ("row", "turn", "start", "length")


def _place(item: Mapping[str, Any]) -> tuple[int, int, int]:
    """Which window of the data it is."""
    return int(item["row"]), int(item["turn"]), int(item["start"])


EMPTY = -1  # the index of a row that holds nothing to train


@dataclass(frozen=True)
class Rows(Dataset[Mapping[str, Any]]):
    """The windows of a data set, in files; and which group the sampled ones' tokens are of."""

    data: Any  # a `datasets.Dataset` with FEATURES, and (T,) columns of finished scans
    source: str
    fingerprint: str
    lost: Counter[str]  # what was left out or cut, and how often
    groups: dict[tuple[int, int, int], torch.Tensor]  # `_place` → (T,) uint8, see GROUP_BITS

    @classmethod
    def read(
        cls,
        source: Source,
        settings: ScanSettings,
        model: CausalLM,
        beside: Sequence[Beside],
        cache: str,
    ) -> "Rows":
        """Raises `DataError` where no row has a trained token."""
        lost = Counter[str]()

        def rows() -> Iterator[dict[str, Any]]:
            cursors = [b.cursor() for b in beside]
            for rendered, window in read_windows(source, settings, model, lost):
                row, turn = window.example, rendered.of_turn
                yield {
                    "row": row,
                    "turn": -1 if turn is None else turn,
                    "start": window.start,
                    "input_ids": window.ids,
                    "trained": window.trained,
                    "length": len(window.ids),
                } | {
                    n: c for cursor in cursors for n, c in cursor.columns(row, turn, window).items()
                }

        first = next(rows(), None)
        if first is None:
            raise DataError("no row has a trained token; `eaft-probe render` shows why")
        lost.clear()  # of the look at the first rows
        made = _dataset(first, rows, cache).with_format("numpy")
        fingerprint = source.fingerprint()
        source.require_unchanged()  # so it is that of the rows
        return cls(made, source.name, fingerprint, lost, {})

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row: dict[str, Any] = self.data[max(index, 0)]
        if index == EMPTY:
            row |= {"row": EMPTY, "trained": np.zeros_like(row["trained"])}
        return row

    @property
    def lengths(self) -> list[int]:
        """Tokens of each window."""
        return [int(n) for n in self.data["length"]]

    def collate(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Right-padded tensors (B, T), and `row` (B,)."""
        rows = [self._columns(item) for item in items]
        batch = {
            name: pad_sequence([r[name] for r in rows], batch_first=True, padding_value=0)
            for name in rows[0]
        }
        return batch | {"row": torch.tensor([int(i["row"]) for i in items])}

    def _columns(self, item: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """(T,) tensors of one window; `group` is UNKNOWN where its tokens were not grouped."""
        made = {n: torch.tensor(c) for n, c in item.items() if n not in PLACE}
        made["input_ids"] = made["input_ids"].long()
        made["attention_mask"] = torch.ones_like(made["input_ids"])
        unknown = torch.full(made["input_ids"].shape, UNKNOWN, dtype=torch.uint8)
        grouped = self.groups.get(_place(item), unknown)
        return {"group": grouped} | made


class ByLength(Sampler[int]):
    """Batches of rows alike in length, in an order of its own for each epoch.

    It hangs on seed and epoch alone, so that a resumed run goes on in it, and that which rows a
    short run will visit is known beforehand. Filled up to a multiple of `together`, the rows that
    all processes take at once, with `EMPTY`: accelerate would fill up with rows of the epoch's
    beginning, and train them twice.
    """

    def __init__(self, lengths: Sequence[int], step: int, together: int, seed: int) -> None:
        self.lengths, self.step, self.seed, self.epoch = lengths, step, seed, 0
        self.empty = -len(lengths) % together

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.empty

    def __iter__(self) -> Iterator[int]:
        own = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = get_length_grouped_indices(self.lengths, self.step, generator=own)
        return iter([*rows, *[EMPTY] * self.empty])


class InEpoch(TrainerCallback):  # type: ignore[misc]
    """Tells the order its epoch. In the epoch that several processes resume in, accelerate does
    not reach it: they would end that one with the first epoch's rows."""

    def __init__(self, order: ByLength) -> None:
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.order.set_epoch(int(state.epoch))


def group_tokens(rows: Rows, model: CausalLM, visited: Sequence[int], most: int, seed: int) -> None:
    """Sorts the tokens of at most `most` of the visited rows into groups by the model as it is."""
    count = min(most, len(visited))
    chosen = np.random.default_rng(seed).choice(np.asarray(visited), count, replace=False)
    items = [rows.data[int(i)] for i in sorted(chosen)]
    made = [
        Window(i, int(r["start"]), r["input_ids"], np.asarray(r["trained"], bool))
        for i, r in enumerate(items)
    ]
    statistics = [STATISTICS[n] for n in ("entropy", "prob", "rank")]
    budget = auto_tokens(model.device.type)
    model.whole.eval()  # without dropout; a new adapter adds nothing yet
    for batch in batches(made, budget, None, regimes(model.borders)):
        columns = measure(model, batch, statistics).columns
        found = groups(columns, ConflictRule())
        flags = sum(
            (found[n].to(torch.uint8) * bit for n, bit in GROUP_BITS.items()),
            torch.zeros(len(columns["prob"]), dtype=torch.uint8),
        )
        for window in batch.window:
            own, flags = flags.split(
                [int(window.trained.sum()), len(flags) - int(window.trained.sum())]
            )
            group = torch.full((len(window.ids),), UNKNOWN, dtype=torch.uint8)
            group[torch.from_numpy(window.trained)] = own
            rows.groups[_place(items[window.example])] = group
    model.whole.train()
