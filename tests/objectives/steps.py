"""One optimizer step of a tiny model over a few rows, and the gradients that it makes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tiny
import torch
from transformers import TrainerCallback, TrainingArguments

from eaft_probe.model.head import head_of
from eaft_probe.objectives.forward import gate
from eaft_probe.objectives.gates import Columns
from eaft_probe.objectives.objective import Step
from eaft_probe.objectives.trainer import GatedTrainer, Gathered

ROWS, V = 8, 200
Gradients = dict[str, torch.Tensor]


def rows() -> list[dict[str, torch.Tensor]]:
    """Examples of unequal length with unequal shares of trained tokens; one has none."""
    made = []
    for i in range(ROWS):
        torch.manual_seed(i)
        ids = torch.randint(V, (5 + 3 * i,))
        trained = torch.rand(len(ids)) < (0.1 + 0.1 * i)
        trained[0], trained[-1] = False, i != 3
        trained = trained if i != 3 else trained & False
        base = -2 * torch.rand(len(ids))
        made.append(
            {
                "input_ids": ids,
                "trained": trained,
                "reference_logprob": base,
                "base_prob": base.exp(),
                "base_logprob": 5 * base,
                "base_mean_nll": torch.full_like(base, 0.5 + 0.2 * i),
            }
        )
    return made


def collate(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    length = max(len(i["input_ids"]) for i in items)
    items = [i | {"attention_mask": torch.ones_like(i["input_ids"])} for i in items]
    batch = {n: c.new_zeros(len(items), length) for n, c in items[0].items()}
    for row, item in enumerate(items):
        for name, column in item.items():
            batch[name][row, : len(column)] = column
    return batch


class Keep(TrainerCallback):
    """The gradients as the optimizer is about to see them."""

    def __init__(self) -> None:
        self.gradients: Gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters()}


def one_step(
    folder, chosen, each: int, model=None, reference=None, steps_of: int | None = None, **options
) -> Gradients:
    """The gradients of one optimizer step over all rows: `each` rows a micro-batch, `steps_of`
    micro-batches a process."""
    keep = Keep()
    if chosen.of_scan:
        means = {"base_mean_nll": torch.stack([r["base_mean_nll"][0] for r in rows()])}
        chosen = chosen.resolve(Step(Gathered({}), Gathered(means)))
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=each,
        max_steps=1,
        report_to=[],
        gradient_accumulation_steps=steps_of or ROWS // each,
        max_grad_norm=0,
        use_cpu=True,
        save_strategy="no",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_strategy="no",
        **options,
    )
    GatedTrainer(
        gate(model or build()),
        arguments,
        train_dataset=rows(),
        data_collator=collate,
        callbacks=[keep],
        objective=chosen,
        reference=reference,
    ).train()
    return keep.gradients


def build(**changes):
    torch.manual_seed(0)
    return tiny.build("llama", **changes)


def off(a: Gradients, b: Gradients) -> float:
    """‖a − b‖ / ‖b‖ over all parameters."""
    both = [(a[n].double(), b[n].double()) for n in b]
    difference = sum(float((x - y).pow(2).sum()) for x, y in both)
    return (difference / sum(float(y.pow(2).sum()) for _, y in both)) ** 0.5


class Other:
    """Another tiny model as reference."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.model = tiny.build("llama").eval()
        self.head = head_of(self.model)

    @torch.no_grad()
    def hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.base_model(input_ids=input_ids)[0]


@dataclass(frozen=True)
class Whole:
    """A population in one piece, of arrays or of tensors."""

    columns: Columns

    def mean(self, of: Callable[[Columns], Any]) -> float:
        return float(np.mean(np.asarray(of(self.columns)), dtype=np.float64))

    def quantile(self, of: Callable[[Columns], Any], at: float) -> float:
        return float(np.quantile(np.float64(np.asarray(of(self.columns))), at))
