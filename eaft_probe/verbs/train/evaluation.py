"""What a run learned and forgot: nll on held-out target data, nll and KL on data to be retained."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from eaft_probe.data.batches import Window, batches
from eaft_probe.data.opening import open_data
from eaft_probe.errors import DataError
from eaft_probe.model.loading import CausalLM
from eaft_probe.objectives.forward import ReferenceModel
from eaft_probe.objectives.trainer import GatedTrainer
from eaft_probe.settings import ScanSettings
from eaft_probe.verbs.scan.plan import auto_tokens
from eaft_probe.verbs.train.dataset import Lost, read_windows

FIGURES = ("eval_nll", "retain_nll", "retain_kl")


@dataclass(frozen=True)
class HeldOut:
    """Called with a trainer, measures the model as it then is: those of FIGURES that there are."""

    target: Sequence[Window]
    retain: Sequence[Window]
    base: ReferenceModel | None  # the starting model, where there is data to retain
    notes: Sequence[str] = ()  # what of the two was read and left out

    def __call__(self, trainer: GatedTrainer) -> dict[str, float]:
        figures = {f"eval_{k}": v for k, v in _means(trainer, self.target, None).items()}
        retained = _means(trainer, self.retain, self.base)
        return figures | {f"retain_{k}": v for k, v in retained.items()}


def read_held_out(
    data: str | None, settings: ScanSettings, model: CausalLM, most: int
) -> tuple[list[Window], list[str]]:
    """The first windows of the data, `most` tokens at most, and sentences on what was left out.
    Raises `DataError`."""
    if data is None:
        return [], []
    first, tokens, lost, notes = list[Window](), 0, Lost(), list[str]()
    source = open_data(data, settings, notes.append)
    for _, window in read_windows(source, settings, model, lost):
        tokens += len(window.ids)
        if first and tokens > most:
            break
        first.append(window)
    source.require_unchanged()
    if not first:
        raise DataError(f"{data}: no row has a trained token; `eaft-probe render` shows why")
    return first, [*notes, *(f"{data}: {sentence}" for sentence in lost.sentences())]


def _means(
    trainer: GatedTrainer, items: Sequence[Window], base: ReferenceModel | None
) -> dict[str, float]:
    """Mean nll, and KL where there is a base, over the windows' trained tokens.

    Each rank takes its share of the batches, and as many of them as the others: where they run
    out, the last one again, which does not count.
    """
    if not items:
        return {}
    device = trainer.args.device
    all_batches = list(batches(items, auto_tokens(device.type), None))
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    names = ("logprob", "kl_reference") if base else ("logprob",)
    ranks, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    for index in range(rank, rank + len(all_batches), ranks):
        batch = all_batches[min(index, len(all_batches) - 1)]
        inputs = {n: getattr(batch, n) for n in ("input_ids", "attention_mask", "trained")}
        columns = trainer.columns(inputs, names, base)
        if index < len(all_batches):
            count = torch.tensor(len(columns["logprob"]))
            totals = torch.stack([count, *(columns[n].double().sum() for n in names)])
            sums[: len(totals)] += totals.to(device)
    tokens, logprob, kl = trainer.accelerator.reduce(sums).tolist()
    return {"nll": -logprob / tokens} | ({"kl": kl / tokens} if base else {})
