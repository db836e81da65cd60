"""A causal language model whose forward pass is its gated loss, and the `Trainer` around it.

Body, head and loss run inside the forward pass of the module that DDP or FSDP wraps: calling the
body by itself would skip their hooks and train on wrong gradients without a word.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, Protocol

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler
from transformers import Trainer

from eaft_probe.columns.measure import measure_states
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.data.batches import targets
from eaft_probe.errors import BadInput, ModelError, NonFinite
from eaft_probe.model.head import Head, head_of
from eaft_probe.objectives.loss import Reference, gated_loss
from eaft_probe.objectives.objective import Columns, Objective
from eaft_probe.objectives.scanned import OF_BASE
from eaft_probe.objectives.tally import TALLY, facts, tally


def gate(model: Any) -> Any:
    """Gives a `transformers` causal language model the gated forward pass, in place.

    model(input_ids, attention_mask, trained, objective=…, count=…) then returns `loss`, `logprob`
    and `gate` (N,); with `reads=(…)` instead, those columns without a graph. Everything else of
    the model (saving, adapters, checkpointing) stays as it is. Raises `ModelError`.
    """
    live_head(model)  # refused now rather than in the first step
    if _routes(model) and not all(hasattr(model, name) for name in ROUTER):
        raise ModelError("this mixture of experts asks for its router's auxiliary loss in a way "
                         "that is not known here; set output_router_logits to false in its config"
                         )  # fmt: skip
    model.forward = MethodType(_forward, model)
    return model


def unadapted(model: Any) -> Any:
    """The causal language model inside a PEFT model, which has its adapters within."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _forward(
    self: Any,
    input_ids: torch.Tensor,
    trained: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    objective: Objective | None = None,
    count: float | None = None,
    reads: Sequence[str] = (),
    reference: "ReferenceModel | None" = None,
    **others: Any,
) -> dict[str, torch.Tensor]:
    more: dict[str, Any] = {} if position_ids is None else {"position_ids": position_ids}
    more |= {"output_router_logits": True} if _routes(self) else {}
    outputs = self.base_model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **more
    )
    rows, columns, labels = targets(input_ids, trained)
    hidden, head, pull = outputs[0][rows, columns], _gathered_head(self), None
    if reference is not None:
        if position_ids is not None:
            raise BadInput("a reference does not see packed rows apart; leave out packing")
        pull = Reference(reference.head, reference.hidden(input_ids)[rows, columns])
    if objective is None:
        frozen = replace(head, weight=head.weight.detach())
        wanted = [STATISTICS[name] for name in reads]
        theirs = (pull.head, pull.hidden) if pull else (None, None)
        return measure_states(frozen, hidden.detach(), labels, wanted, *theirs).columns
    assert count is not None, "a loss needs the count of the step's trained tokens"
    base = {n: others[n][rows, columns + 1] for n in objective.reads if n in OF_BASE}
    gated = gated_loss(head, hidden, labels, objective, count, base, pull)
    loss = gated.loss
    if _routes(self):  # the micro-batch's share: its trained tokens
        loss = loss + _router_loss(self, outputs, attention_mask) * (len(labels) / count)
    return {"loss": loss, **gated.columns.columns}


# What the models of transformers keep their router's settings in.
ROUTER = ("router_aux_loss_coef", "num_experts", "num_experts_per_tok")


def _routes(model: Any) -> bool:
    """Whether the model's config asks for the router's auxiliary loss."""
    return bool(getattr(model.config.get_text_config(), "output_router_logits", False))


def _router_loss(model: Any, outputs: Any, attention_mask: torch.Tensor | None) -> Any:
    """The auxiliary loss as the model's own file defines it, with its coefficient."""
    balance = sys.modules[type(model).__module__].load_balancing_loss_func  # type: ignore[attr-defined]
    coefficient, experts, chosen = (getattr(model, name) for name in ROUTER)
    return coefficient * balance(outputs.router_logits, experts, chosen, attention_mask)


class ReferenceModel(Protocol):
    """What an anchor pulls towards: a loaded `CausalLM`, or the model with its adapter off."""

    @property
    def head(self) -> Head: ...

    def hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) → (B, T, D), no graph."""


@dataclass(frozen=True)
class AdapterOff:
    """The base of a PEFT model as reference: no second copy, no dropout."""

    adapted: Any
    head: Head

    @torch.no_grad()
    def hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        training = self.adapted.training
        self.adapted.eval()
        try:
            with self.adapted.disable_adapter():
                body = self.adapted.get_base_model().base_model
                states: torch.Tensor = body(input_ids=input_ids, use_cache=False)[0]
                return states
        finally:
            self.adapted.train(training)


def live_head(model: Any) -> Head:
    """The head with the parameters that are trained, not copies of them. Raises `ModelError`."""
    module = model.get_output_embeddings()
    if hasattr(module, "modules_to_save"):
        module = module.modules_to_save[module.active_adapter]
    if hasattr(module, "base_layer"):
        raise ModelError("an adapter on the head cannot be trained by a gated loss; leave the "
                         "head out of the adapter's target modules, or train it whole")  # fmt: skip
    return replace(head_of(model), weight=module.weight, bias=getattr(module, "bias", None))


def _gathered_head(model: Any) -> Head:
    """The live head during the forward pass, which sharding must have put together by now: the
    head's own hooks do not run, as its weight is read without calling it. Raises `ModelError`."""
    head = live_head(model)
    if isinstance(head.weight, DTensor) or head.weight.dim() != 2:
        raise ModelError("the head's weights are sharded by themselves, so a gated loss cannot "
                         "read them; shard them together with the final norm or the whole model "
                         "(FSDP2), and leave out tensor parallelism")  # fmt: skip
    return head


# --- the whole step ---


@dataclass(frozen=True)
class Gathered:
    """A `Population` held in memory: the tokens or examples of one step, from all ranks."""

    columns: Columns

    def mean(self, of: Callable[[Columns], Any]) -> float:
        return float(of(self.columns).double().mean())

    def quantile(self, of: Callable[[Columns], Any], at: float) -> float:
        return float(np.quantile(of(self.columns).double().numpy(), at))


@dataclass(frozen=True)
class BatchStep:
    """One optimizer step as an objective's `Step`."""

    tokens: Gathered
    examples: Gathered


class GatedLossMixin:
    """Put before a `Trainer`, transformers' own or TRL's: `class Mine(GatedLossMixin, SFTTrainer)`.

    Minimises Σ gate · nll / N, N the trained tokens of the whole step, over all micro-batches and
    ranks; in evaluation the plain nll. Batches hold `input_ids`, `attention_mask` and `trained`
    (B, T), or `labels` with −100 where nothing is trained, and (B, T) columns such as `base_prob`
    where the objective reads them. An objective with an anchor gets a `reference`. What would
    replace the loss without a word is refused: label smoothing, a loss function of one's own,
    sequence parallelism, Liger's fused loss. Raises `BadInput` and `ModelError`.
    """

    args: Any  # these are the Trainer's
    model: Any
    model_wrapped: Any
    accelerator: Any
    state: Any
    _prepare_inputs: Any

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        reference: ReferenceModel | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.tally = torch.zeros(len(TALLY), dtype=torch.float64, device=self.args.device)
        refuse(self)
        if objective.anchor and reference is None:
            raise BadInput(f"objective {objective.name!r} needs a reference model")
        if reference and not objective.anchor:
            raise BadInput(f"objective {objective.name!r} has no use for a reference model")
        gate(unadapted(self.model))
        self.reference = reference
        self.objective = self.step_objective = objective
        self.loss_is_scaled_for_ga = True  # by the count of the whole step

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """The micro-batches of a step, with N over all of them and all ranks."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        samples = [gated_inputs(s) for s in samples]
        own = torch.tensor(sum(int(s["trained"].sum()) for s in samples), device=device)
        if self.objective.of_step:
            self.step_objective = self.objective.resolve(self._step(samples))
        return samples, int(self.accelerator.reduce(own))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> Any:
        """The gated loss; of a batch outside of training its mean nll."""
        inputs = gated_inputs(inputs)
        if num_items_in_batch is None:
            nll = -self.columns(inputs, ("logprob",))["logprob"].mean().to(inputs["trained"].device)
            return (nll, {"loss": nll}) if return_outputs else nll
        # DDP and FSDP average gradients over ranks, hence the division of N.
        count = max(num_items_in_batch, 1) / self.accelerator.num_processes
        outputs = model(
            **inputs, objective=self.step_objective, count=count, reference=self.reference
        )
        if not torch.isfinite(outputs["loss"]):
            rows = inputs["row"].tolist() if "row" in inputs else "unknown"
            raise NonFinite(f"the loss is not finite in step {self.state.global_step + 1}, rows "
                            f"{rows}; try a lower --learning-rate, or float32")  # fmt: skip
        self.tally += tally(outputs, inputs, count)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the gates did since the last line: see `facts`."""
        if "loss" in logs:
            logs |= facts(self.accelerator.reduce(self.tally).tolist())
            self.tally.zero_()
        super().log(logs, start_time)  # type: ignore[misc]

    @torch.no_grad()
    def columns(
        self,
        inputs: dict[str, torch.Tensor],
        reads: Sequence[str],
        reference: ReferenceModel | None = None,
    ) -> dict[str, torch.Tensor]:
        """The statistics `reads` (N,) of a batch under the model as it is, without dropout."""
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        try:
            with self.accelerator.autocast():
                prepared = self._prepare_inputs(inputs)
                found: dict[str, torch.Tensor] = model(**prepared, reads=reads, reference=reference)
                return found
        finally:
            model.train(was_training)

    @torch.no_grad()
    def _step(self, samples: Sequence[dict[str, torch.Tensor]]) -> BatchStep:
        """A pass without gradients over all micro-batches of the step, on all ranks."""
        # Sorted: the ranks gather column after column, and a set has another order on each.
        reads = tuple(sorted({*self.objective.reads, "logprob"} - set(OF_BASE)))
        tokens, means = [], []
        for sample in samples:
            columns = self.columns(sample, reads)
            given = {n: sample[n][sample["trained"]] for n in self.objective.reads if n in OF_BASE}
            tokens.append(columns | given)
            means.append(_of_examples(columns["logprob"], sample))
        return BatchStep(*(Gathered(self._joined(parts)) for parts in (tokens, means)))

    def _joined(self, parts: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {n: self._everywhere(torch.cat([p[n].cpu() for p in parts])) for n in parts[0]}

    def _everywhere(self, column: torch.Tensor) -> torch.Tensor:
        """The column of all ranks, on the CPU."""
        if self.accelerator.num_processes == 1:
            return column
        found: list[Any] = [None] * self.accelerator.num_processes
        torch.distributed.all_gather_object(found, column)
        return torch.cat(found)


def _of_examples(logprob: torch.Tensor, sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """(examples with a trained token,) mean nll."""
    rows = sample["trained"].nonzero(as_tuple=True)[0].cpu()
    counts = torch.bincount(rows, minlength=len(sample["trained"])).double()
    sums = torch.zeros_like(counts).index_add_(0, rows, -logprob.cpu().double())
    return {"mean_nll": (sums / counts.clamp(min=1))[counts > 0]}


def gated_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch with `trained` instead of `labels`. Raises `BadInput` for what has no place in it."""
    if "trained" in inputs:
        return inputs
    if "labels" not in inputs or "input_ids" not in inputs:
        raise BadInput(f"a batch needs input_ids and labels, found {', '.join(inputs)}")
    trained = inputs["labels"] != -100
    trained[:, 0] = False  # nothing predicts it
    if "position_ids" in inputs:
        trained &= inputs["position_ids"] != 0  # nor the first token of a packed row
    if not torch.equal(inputs["labels"][trained], inputs["input_ids"][trained]):
        raise BadInput("labels that are not the input_ids of their own positions (shifted ones, "
                       "soft prompts) cannot be trained on")  # fmt: skip
    kept = {n: c for n, c in inputs.items() if n in ("input_ids", "attention_mask", "position_ids")}
    return {**kept, "trained": trained}


def refuse(trainer: Any) -> None:
    args, parallel = trainer.args, getattr(trainer.accelerator, "parallelism_config", None)
    refused = {
        "label smoothing": args.label_smoothing_factor != 0,
        "a compute_loss_func": trainer.compute_loss_func is not None,
        "Liger's fused loss": args.use_liger_kernel,
        "sequence parallelism": parallel is not None and getattr(parallel, "sp_enabled", False),
        "several GPUs in one process": args.n_gpu > 1,
    }
    for what, asked in refused.items():
        if asked:
            raise BadInput(f"{what} would replace the gated loss; leave it out")


class GatedTrainer(GatedLossMixin, Trainer):  # type: ignore[misc]
    """The `Trainer` of `eaft-probe train`: rows in the order of `sampler`, and held-out data.

    `held_out`, called with the trainer, gives the figures of an evaluation.
    """

    def __init__(
        self,
        *args: Any,
        sampler: Sampler[int] | None = None,
        held_out: Callable[["GatedTrainer"], dict[str, float]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.sampler, self.held_out = sampler, held_out

    def _get_train_sampler(self, *args: Any) -> Any:
        return self.sampler or super()._get_train_sampler(*args)

    def held_out_figures(self) -> dict[str, float]:
        """Of the model as it is."""
        return self.held_out(self) if self.held_out else {}

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """The held-out figures, logged."""
        metrics = self.held_out_figures()
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics
