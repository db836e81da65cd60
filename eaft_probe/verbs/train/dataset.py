"""The rows that a run is trained on: the same tokens that a scan scores, as padded batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.groups import GROUP_COLUMNS, groups
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
from eaft_probe.objectives.forward import evaluation_mode
from eaft_probe.objectives.step_metrics import UNKNOWN, group_bits
from eaft_probe.quantities import counted_noun
from eaft_probe.scans.rejections import Reasons, reason_lines
from eaft_probe.settings import ScanSettings
from eaft_probe.verbs.scan.plan import auto_tokens
from eaft_probe.verbs.train.scan_features import Cursor, ScanFeatures


class Lost:
    """What of the data is not trained."""

    def __init__(self) -> None:
        self.rows = self.cut = 0
        self.reasons = Reasons()

    def reject(self, reason: str) -> None:
        self.rows += 1
        self.reasons.add(reason)

    def sentences(self) -> list[str]:
        """For people."""
        why = "; ".join(reason_lines(self.reasons.summed()))
        left_out = [f"{counted_noun(self.rows, 'row')} left out; {why}"] if self.rows else []
        cut = f"{counted_noun(self.cut, 'conversation')} cut at the right, at --max-length"
        return [*left_out, *([cut] if self.cut else [])]


def read_windows(
    source: Source,
    settings: ScanSettings,
    model: CausalLM,
    lost: Lost,
    keep: Callable[[int], bool] = lambda row: True,
) -> Iterator[tuple[Rendered, Window]]:
    """Every rendering with a trained token, in its windows, whose `example` is the row's number,
    of the rows that `keep` holds for; what is not trained is counted in `lost`, or raises
    `BadInput` under --strict."""
    renderer = Renderer(model.tokenizer, RenderOptions.of(settings))
    reader = Reader(data_format(source, settings), renderer.renderings, settings.strict)
    rows, longest = selection(settings), settings.max_length or model.max_length
    require_stride(settings.stride, longest)
    for record in rows.records(source, rows.rows(source)):
        if not keep(record.row):
            continue
        result = reader(record)
        if isinstance(result, Rejected):
            lost.reject(result.reason)
            continue
        for rendered in result[1]:
            cut_windows, cut = windows(record.row, rendered, longest, settings.stride)
            lost.cut += bool(cut)
            yield from ((rendered, window) for window in cut_windows)


Row = dict[str, Any]  # FEATURES, and (T,) columns of finished scans
PER_WINDOW = ("row", "turn", "start", "length")
FEATURES = {
    "row": datasets.Value("int64"),
    "turn": datasets.Value("int16"),
    "start": datasets.Value("int32"),
    "input_ids": datasets.List(datasets.Value("int32")),
    "trained": datasets.List(datasets.Value("bool")),
    "length": datasets.Value("int32"),
}


def _dataset(first: Row, rows: Callable[[], Iterator[Row]], cache: str) -> datasets.Dataset:
    """The rows, of which `first` is one, in arrow files. The fingerprint is given: hashing the
    generator would hash the model."""
    datasets.disable_progress_bars()
    of_scans = {
        n: datasets.List(datasets.Value(str(c.dtype)))
        for n, c in first.items()
        if n not in FEATURES
    }
    try:
        return datasets.Dataset.from_generator(
            rows,
            features=datasets.Features(FEATURES | of_scans),
            cache_dir=cache,
            fingerprint=Path(cache).name,
        )
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__
        if isinstance(cause, ProbeError):
            raise cause from None
        reason = one_line(cause or error)
        if isinstance(cause, OSError):
            reason = f"cannot write the tokens to {cache}: {reason}; set TMPDIR to another folder"
        raise DataError(reason) from error


def _window_key(row: Row) -> tuple[int, int, int]:
    """Which window of the data it is."""
    return int(row["row"]), int(row["turn"]), int(row["start"])


EMPTY = -1  # the index of a row that holds nothing to train


@dataclass(frozen=True)
class Rows(Dataset[Row]):
    """The windows of a data set, in files; and the groups of the tokens of sampled ones."""

    data: datasets.Dataset  # with FEATURES, and (T,) columns of finished scans
    source: str
    fingerprint: str
    lost: Lost
    groups: dict[tuple[int, int, int], torch.Tensor]  # `_window_key` → (T,) uint8, see GROUP_BITS

    @classmethod
    def read(
        cls,
        source: Source,
        settings: ScanSettings,
        model: CausalLM,
        features: Sequence[ScanFeatures],
        cache: str,
    ) -> "Rows":
        """Raises `DataError` where no row has a trained token."""

        def rows(lost: Lost) -> Iterator[Row]:
            cursors = [Cursor(f) for f in features]
            for rendered, window in read_windows(source, settings, model, lost):
                row, turn = window.example, rendered.of_turn
                columns = {
                    "row": row,
                    "turn": -1 if turn is None else turn,
                    "start": window.start,
                    "input_ids": window.ids,
                    "trained": window.trained,
                    "length": len(window.ids),
                }
                for cursor in cursors:
                    columns |= cursor.columns(row, turn, window)
                yield columns

        lost = Lost()
        first = next(rows(Lost()), None)
        if first is None:
            raise DataError("no row has a trained token; `eaft-probe render` shows why")
        data = _dataset(first, lambda: rows(lost), cache).with_format("numpy")
        fingerprint = source.fingerprint()
        source.require_unchanged()  # so it is that of the rows
        return cls(data, source.name, fingerprint, lost, {})

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Row:
        row: Row = self.data[max(index, 0)]
        if index == EMPTY:
            row |= {"row": EMPTY, "trained": np.zeros_like(row["trained"])}
        return row

    def collate(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Right-padded tensors (B, T), and `row` (B,)."""
        windows = [self._columns(row) for row in rows]
        batch = {
            name: pad_sequence([w[name] for w in windows], batch_first=True, padding_value=0)
            for name in windows[0]
        }
        return batch | {"row": torch.tensor([int(row["row"]) for row in rows])}

    def _columns(self, row: Row) -> dict[str, torch.Tensor]:
        """(T,) tensors of one window; `group` is UNKNOWN where its tokens were not grouped."""
        columns = {n: torch.tensor(c) for n, c in row.items() if n not in PER_WINDOW}
        ids = columns["input_ids"].long()
        unknown = torch.full(ids.shape, UNKNOWN, dtype=torch.uint8)
        group = self.groups.get(_window_key(row), unknown)
        added = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return {"group": group} | columns | added


class ByLength(Sampler[int]):
    """Batches of rows alike in length, in an order of its own for each epoch.

    It depends on seed and epoch alone, so that a resumed run continues in it, and the rows that a
    short run will visit are known beforehand. `EMPTY` fills it up to a multiple of `together`, the
    rows that all processes take at once: accelerate would fill it with rows of the epoch's
    beginning, and train them twice.
    """

    def __init__(self, lengths: Iterable[int], step: int, together: int, seed: int) -> None:
        self.lengths, self.step, self.seed, self.epoch = list(map(int, lengths)), step, seed, 0
        self.empty = -len(self.lengths) % together

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.empty

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = get_length_grouped_indices(self.lengths, self.step, generator=generator)
        return iter([*rows, *[EMPTY] * self.empty])


class InEpoch(TrainerCallback):  # type: ignore[misc]
    """Sets the epoch of the order. In the epoch that several processes resume in, accelerate does
    not do it: they would end that one with the first epoch's rows."""

    def __init__(self, order: ByLength) -> None:
        self.order = order

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.order.set_epoch(int(state.epoch))


def group_tokens(rows: Rows, model: CausalLM, visited: Sequence[int], most: int, seed: int) -> None:
    """Sorts the tokens of at most `most` of the visited rows into groups by the model as it is."""
    random, count = np.random.default_rng(seed), min(most, len(visited))
    chosen = random.choice(np.asarray(visited), count, replace=False)
    sampled = [rows.data[int(index)] for index in sorted(chosen)]
    sampled_windows = [
        Window(i, int(r["start"]), r["input_ids"], np.asarray(r["trained"], bool))
        for i, r in enumerate(sampled)
    ]
    statistics = [STATISTICS[name] for name in GROUP_COLUMNS]
    budget, regime = auto_tokens(model.device.type), regimes(model.borders)
    with evaluation_mode(model.whole):  # a new adapter adds nothing yet
        for batch in batches(sampled_windows, budget, None, regime):
            columns = measure(model, batch, statistics).columns
            bits = group_bits(groups(columns, ConflictRule())).to(torch.uint8)
            counts = [int(window.trained.sum()) for window in batch.window]
            for window, of_window in zip(batch.window, bits.split(counts), strict=True):
                group = torch.full((len(window.ids),), UNKNOWN, dtype=torch.uint8)
                group[torch.from_numpy(window.trained)] = of_window
                rows.groups[_window_key(sampled[window.example])] = group
