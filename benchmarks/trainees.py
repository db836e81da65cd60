"""Ways to make the gradients of one training step, for the speed and memory tables.

Every contestant works on the same model and micro-batches, with the same mask and trained tokens.
It takes a `Trainee` and a micro-batch and returns a loss with its graph: the sum over the
micro-batch's trained tokens, divided by the count of the whole step. `step` does forward, backward
and the addition into `.grad` of every micro-batch; no contestant has an optimizer.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from contestants import Work, arguments
from torch.nn import functional as F
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, add_fused_lm_head

from eaft_probe.data.batches import batches, targets
from eaft_probe.objectives.forward import gate, live_head
from eaft_probe.objectives.gates import objective

IGNORED = -100  # the label of a token that is not trained
TRL_OUTPUTS = ("log_probs", "entropy", "is_top1")  # what `SFTTrainer` asks of its fused head


class MicroBatch(NamedTuple):
    """Rows padded at the right to the longest of them, every tensor (B, T)."""

    input_ids: torch.Tensor  # int64
    attention_mask: torch.Tensor  # int64, 0 on padding
    trained: torch.Tensor  # bool
    labels: torch.Tensor  # int64, IGNORED where not trained

    @property
    def inputs(self) -> dict[str, Any]:
        """What every body reads."""
        masked = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return {**masked, "use_cache": False}


@dataclass(frozen=True)
class Trainee:
    """One model with three forward passes, and the micro-batches of one optimizer step."""

    model: Any
    plain: Callable[..., Any]  # as `transformers` made it
    fused: Callable[..., Any]  # with TRL's fused head
    gated: Callable[..., Any]  # with this package's loss
    batches: list[MicroBatch]

    @classmethod
    def of(cls, work: Work, rows: int) -> "Trainee":
        """The work's model, and its rows in file order, `rows` in a micro-batch."""
        model = work.model.whole.train()
        plain = model.forward
        add_fused_lm_head(model, outputs=TRL_OUTPUTS)
        fused = model.forward
        gated = gate(model).forward
        return cls(model, plain, fused, gated, micro_batches(work, rows))

    @property
    def count(self) -> int:
        """Trained tokens of the step."""
        return sum(int(b.trained.sum()) for b in self.batches)

    @property
    def device(self) -> torch.device:
        return self.batches[0].input_ids.device

    def clear(self) -> None:
        """Zeros in every `.grad`, which stays where it is."""
        for weight in self.model.parameters():
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad.zero_()


def micro_batches(work: Work, rows: int) -> list[MicroBatch]:
    windows = [w for unit in work.windows for w in unit]
    groups = [windows[at : at + rows] for at in range(0, len(windows), rows)]
    made = []
    for batch in (b for g in groups for b in batches(g, 10**12, cost=None)):
        labels = batch.input_ids.masked_fill(~batch.trained, IGNORED)
        tensors = (batch.input_ids, batch.attention_mask, batch.trained, labels)
        made.append(MicroBatch(*(t.to(work.model.device) for t in tensors)))
    return made


def step(trainee: Trainee, name: str) -> float:
    """Adds one step's gradients to `.grad`. Returns the loss; on a GPU, when it is done."""
    total = torch.zeros((), device=trainee.device)
    for batch in trainee.batches:
        loss = CONTESTANTS[name](trainee, batch)
        loss.backward()
        total += loss.detach()
    if trainee.device.type == "cuda":
        torch.cuda.synchronize()
    return float(total)


# --- the contestants ---


def sft(trainee: Trainee, batch: MicroBatch) -> torch.Tensor:
    """This package, every gate 1."""
    return _gated(trainee, batch, "sft")


def eaft(trainee: Trainee, batch: MicroBatch) -> torch.Tensor:
    """This package, gates H_top20 / ln 20."""
    return _gated(trainee, batch, "eaft")


def _gated(trainee: Trainee, batch: MicroBatch, name: str) -> torch.Tensor:
    outputs = trainee.gated(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        trained=batch.trained,
        objective=objective(name),
        count=trainee.count,
    )
    loss: torch.Tensor = outputs["loss"]
    return loss


def hf_sft(trainee: Trainee, batch: MicroBatch) -> torch.Tensor:
    """`transformers`: all logits, and the model's own cross-entropy."""
    outputs = trainee.plain(**batch.inputs, labels=batch.labels, num_items_in_batch=trainee.count)
    loss: torch.Tensor = outputs.loss
    return loss


def trl_chunked(trainee: Trainee, batch: MicroBatch) -> torch.Tensor:
    """TRL's `loss_type="nll"`, once "chunked_nll", as `SFTTrainer.compute_loss` calls it.

    Where there is no Triton, as on a CPU, its head scores every position, trained or not.
    """
    outputs = trainee.fused(**batch.inputs, labels=batch.labels, fused_lm_head=True)
    loss: torch.Tensor = -outputs.log_probs.sum() / trainee.count
    return loss


def trl_compact(trainee: Trainee, batch: MicroBatch) -> torch.Tensor:
    """The same kernel given the trained positions only, as TRL does where there is Triton."""
    rows, columns, labels = targets(batch.input_ids, batch.trained)
    head, states = live_head(trainee.model), _states(trainee, batch)[rows, columns]
    logprob, *_ = ChunkedLogProbFunction.apply(
        states,
        head.weight,
        head.bias,
        labels,
        1.0,
        _CHUNKED_LOGPROB_CHUNK_SIZE,
        head.softcap,
        head.scale,
        TRL_OUTPUTS,
    )
    loss: torch.Tensor = -logprob.sum() / trainee.count
    return loss


def full_logits_eaft(trainee: Trainee, batch: MicroBatch) -> torch.Tensor:
    """EAFT as LLaMA-Factory has it: all logits in float32, a copy of the trained rows, their
    cross-entropy weighted by H_top20 / 3.0 (not ln 20 = 2.996, hence 0.14 % less)."""
    logits = trainee.plain(**batch.inputs).logits.float()
    labels = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORED).flatten()
    valid = labels != IGNORED
    rows = logits.flatten(0, 1)[valid]  # (N, V)
    nll = F.cross_entropy(rows, labels[valid], reduction="none")
    with torch.no_grad():
        top = rows.topk(20).values
        logprob = top - top.logsumexp(1, keepdim=True)
        weight = (-(logprob.exp() * logprob).sum(1) / 3.0) ** 1.0
    loss: torch.Tensor = (weight * nll).sum() / trainee.count
    return loss


def body(trainee: Trainee, batch: MicroBatch) -> torch.Tensor:
    """The floor under all of them: the body with a trivial loss, no head."""
    return _states(trainee, batch).sum() / trainee.count


def _states(trainee: Trainee, batch: MicroBatch) -> torch.Tensor:
    """(B, T, D) hidden states."""
    states: torch.Tensor = trainee.model.base_model(**batch.inputs)[0]
    return states


CONTESTANTS: dict[str, Callable[[Trainee, MicroBatch], torch.Tensor]] = {
    "body": body,
    "sft": sft,
    "eaft": eaft,
    "hf sft": hf_sft,
    "trl chunked": trl_chunked,
    "trl compact": trl_compact,
    "full-logits eaft": full_logits_eaft,
}


# --- what the scripts have in common ---


def step_arguments(description: str | None, micro_batches: int) -> argparse.ArgumentParser:
    """The flags that choose the data, the model and the size of a step."""
    parser = arguments(description)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=8, help="of a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=micro_batches, help="of a step")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=[*CONTESTANTS])
    return parser


def described(work: Work, trainee: Trainee) -> str:
    """One line: what a step is made of."""
    shapes = ", ".join(" × ".join(map(str, b.input_ids.shape)) for b in trainee.batches)
    return (
        f"{work.data.name}, {work.settings.model} in {work.model.dtype} on {work.model.device}; "
        f"micro-batches {shapes}, {trainee.count:,} trained tokens; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
