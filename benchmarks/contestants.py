"""Ways to score the same rows under the same loaded model, for the speed and memory tables.

Each contestant takes a `Work` and returns the mean log-probability of the trained tokens, so that
a table shows whether all of them did the same work; `bare` computes none.
"""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from eaft_probe.columns.measure import PRODUCT_BYTES, measure
from eaft_probe.columns.statistics import chosen_statistics
from eaft_probe.data.batches import TokenBatch, Window, batches
from eaft_probe.data.opening import data_format, open_data, selection
from eaft_probe.data.sources import open_source
from eaft_probe.data.units import UnitPlan
from eaft_probe.model.loading import CausalLM, load_model
from eaft_probe.progress import Silent
from eaft_probe.scans.upload import Workspace
from eaft_probe.settings import ScanSettings
from eaft_probe.storage.folder import Folder
from eaft_probe.verbs.scan.plan import batch_tokens
from eaft_probe.verbs.scan.score_unit import Scorer

USUAL_ROWS = 8  # rows of a batch in the usual recipe


@dataclass
class Work:
    """Rows to score and the loaded model; what a first run makes serves the later ones."""

    data: Path
    settings: ScanSettings
    model: CausalLM
    folder: Path  # scans go here, each into its own

    @classmethod
    def load(cls, data: Path, settings: ScanSettings, folder: Path, dtype: str = "auto") -> "Work":
        return cls(data, settings, load_model(settings.model, dtype=dtype), folder)

    @property
    def units(self) -> UnitPlan:
        source = open_data(str(self.data), self.settings)
        return UnitPlan.of(source, selection(self.settings), self.settings.rows_per_unit)

    def scorer(self, folder: Path) -> Scorer:
        """A new scan of this work, as `eaft_probe.scan` makes it."""
        row_format = data_format(open_data(str(self.data), self.settings), self.settings)
        statistics = chosen_statistics(self.settings.statistics, False)
        budget = batch_tokens(self.settings, str(self.model.device))
        work = Workspace(Folder(folder), {"data": {}})
        work.begin(overwrite=False)
        columns = partial(measure, self.model, statistics=statistics)
        return Scorer(
            work, self.model, None, columns, row_format, statistics, self.settings, budget, Silent()
        )

    @cached_property
    def windows(self) -> list[list[Window]]:
        """The tokenized rows of each unit, in file order."""
        scorer = self.scorer(self.new_folder())
        return [scorer.read(unit).windows for unit in self.units.units()]

    @cached_property
    def batches(self) -> list[TokenBatch]:
        """The scan's batches where no prefix is shared."""
        budget = batch_tokens(self.settings, str(self.model.device))
        return [b for unit in self.windows for b in batches(unit, budget, cost=None)]

    @cached_property
    def usual_batches(self) -> list[TokenBatch]:
        """Rows in file order, `USUAL_ROWS` at a time, padded to the longest of them."""
        rows = [w for unit in self.windows for w in unit]
        groups = [rows[at : at + USUAL_ROWS] for at in range(0, len(rows), USUAL_ROWS)]
        return [b for g in groups for b in batches(g, 10**12, cost=None)]

    @property
    def whole_model(self) -> Any:
        """The `transformers` model with body and head together."""
        return self.model.whole

    @cached_property
    def trained_tokens(self) -> int:
        return sum(int(w.trained.sum()) for unit in self.windows for w in unit)

    def new_folder(self) -> Path:
        """An empty folder for one scan."""
        return Path(tempfile.mkdtemp(dir=self.folder))


# --- the contestants ---


def scan(work: Work) -> float:
    """The whole scan: read, render, tokenize, batch, forward, every column, parquet."""
    folder = work.new_folder()
    scorer = work.scorer(folder)
    for unit in work.units.units():
        scorer.score(unit, scorer.read(unit))
    logprob = pq.read_table(folder / "tokens", columns=["logprob"])["logprob"]
    return float(logprob.to_numpy().mean(dtype="float64"))


@torch.inference_mode()
def bare(work: Work) -> None:
    """The body on ready batches and the head's product on the trained positions, nothing else."""
    head, device = work.model.head, work.model.device.type
    rows = max(1, PRODUCT_BYTES.get(device, 256_000_000) // (4 * head.vocab_size))
    buffer = torch.empty(rows, head.vocab_size, device=head.weight.device)
    for batch in work.batches:
        for states in _states(work.model, batch)[0].split(rows):
            head.logits(states, out=buffer[: len(states)])


@torch.inference_mode()
def trl(work: Work) -> float:
    """`bare`'s batches with TRL's fused head: log-probability and entropy, never the logits."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as COLUMNS

    head, total = work.model.head, 0.0
    for batch in work.batches:
        states, labels = _states(work.model, batch)
        logprob, _entropy, *_ = ChunkedLogProbFunction.apply(
            states,
            head.weight,
            head.bias,
            labels,
            1.0,
            COLUMNS,
            head.softcap,
            head.scale,
            ("entropy",),
        )
        total += float(logprob.sum(dtype=torch.float64))
    return total / work.trained_tokens


@torch.inference_mode()
def usual(work: Work) -> float:
    """Batches of 8 rows in file order, a mask, all logits, log_softmax, gather, entropy."""
    total, model, device = 0.0, work.whole_model, work.model.device
    for batch in work.usual_batches:
        ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        logprobs = logits.log_softmax(-1)
        del logits
        chosen = logprobs.gather(-1, ids[:, 1:, None])[..., 0]
        _entropy = -(logprobs.exp() * logprobs).sum(-1)
        total += float(chosen[batch.trained[:, 1:].to(device)].sum(dtype=torch.float64))
    return total / work.trained_tokens


def _states(model: CausalLM, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, D) hidden states that predict the trained tokens, and (N,) those tokens."""
    rows, columns, labels = batch.targets()
    states = model.hidden(batch.input_ids)
    device = states.device
    return states[rows.to(device), columns.to(device)], labels.to(device)


CONTESTANTS: dict[str, Callable[[Work], float | None]] = {
    "bare": bare,
    "scan": scan,
    "trl": trl,
    "usual": usual,
}


# --- what the scripts have in common ---


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The flags that choose the data and the model."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--columns", type=_columns, default={}, help="messages=traj,…")
    parser.add_argument("--tool-calls", choices=("template", "inline"), default="template")
    parser.add_argument("--messages", type=int, help="only the first ones of each conversation")
    parser.add_argument("--max-length", type=int)
    return parser


def _columns(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split(","))


@contextlib.contextmanager
def prepared(args: argparse.Namespace, rows: int, dtype: str = "auto") -> Iterator[Work]:
    """The work that the flags name, with a temporary folder for what it writes."""
    settings = ScanSettings(
        model=args.model,
        columns=args.columns,
        tool_calls=args.tool_calls,
        max_length=args.max_length,
        limit=rows,
    )
    with tempfile.TemporaryDirectory() as name:
        data = args.data
        if args.messages:
            data = Path(name) / "shortened.jsonl"
            _shorten(args.data, data, args.columns.get("messages", "messages"), args.messages)
        yield Work.load(data, settings, Path(name), dtype)


def _shorten(data: Path, out: Path, column: str, messages: int) -> None:
    """Copies the rows with only the first `messages` entries of `column`."""
    with out.open("w") as file:
        for record in open_source(str(data)).records():
            row = record.parse()
            file.write(json.dumps(row | {column: list(islice(row[column], messages))}) + "\n")


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A Markdown table, columns aligned."""
    width = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for line in (head, tuple("-" * w for w in width), *rows):
        cells = [line[0].ljust(width[0])]
        cells += [c.rjust(w) for c, w in zip(line[1:], width[1:], strict=True)]
        print("| " + " | ".join(cells) + " |", flush=True)
