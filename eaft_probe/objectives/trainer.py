"""A causal language model whose forward pass is its gated loss, and the `Trainer` around it.

Body, head and loss run inside the forward pass of the module that DDP or FSDP wraps: calling the
body by itself would skip their hooks and train on wrong gradients without a word.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, Protocol

import numpy as np
import torch
from transformers import Trainer

from eaft_probe.columns.log import LOG_GROUPS
from eaft_probe.columns.measure import measure_states
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.data.batches import targets
from eaft_probe.errors import BadInput, ModelError, NonFinite
from eaft_probe.model.head import Head, head_of
from eaft_probe.objectives.loss import Reference, gated_loss
from eaft_probe.objectives.objective import Columns, Objective
from eaft_probe.objectives.scanned import OF_BASE


def gate(model: Any) -> Any:
    """Gives a `transformers` causal language model the gated forward pass, in place.

    model(input_ids, attention_mask, trained, objective=…, count=…) then returns `loss`, `logprob`
    and `gate` (N,); with `reads=(…)` instead, those columns without a graph. Everything else of
    the model (saving, adapters, checkpointing) stays as it is. Raises `ModelError`.
    """
    live_head(model)  # refused now rather than in the first step
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        raise ModelError("this mixture of experts asks for its router's auxiliary loss, which the "
                         "gated loss lacks; set output_router_logits to false in its config"
                         )  # fmt: skip
    model.forward = MethodType(_forward, model)
    return model


def _forward(
    self: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trained: torch.Tensor,
    objective: Objective | None = None,
    count: float | None = None,
    reads: Sequence[str] = (),
    reference: "ReferenceModel | None" = None,
    **others: Any,
) -> dict[str, torch.Tensor]:
    states = self.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
    rows, columns, labels = targets(input_ids, trained)
    hidden, head = states[rows, columns], live_head(self)
    if objective is None:
        frozen = replace(head, weight=head.weight.detach())
        wanted = [STATISTICS[name] for name in reads]
        return measure_states(frozen, hidden.detach(), labels, wanted).columns
    assert count is not None, "a loss needs the count of the step's trained tokens"
    base = {n: others[n][rows, columns + 1] for n in objective.reads if n in OF_BASE}
    pull = None
    if reference is not None:
        pull = Reference(reference.head, reference.hidden(input_ids)[rows, columns])
    gated = gated_loss(head, hidden, labels, objective, count, base, pull)
    return {"loss": gated.loss, **gated.columns.columns}


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


# --- what is logged ---

GROUP_BITS = {"high": 1, "low": 2, "conflict": 4}  # of the batch column `group`
OTHER, UNKNOWN = 0, 128
LOGGED = LOG_GROUPS[1:]
SUMS = ("count", "loss", "nll", "gated", "gate")
TALLY = (*SUMS, *(f"{g}_{x}" for g in LOGGED for x in ("count", "nll")))


def tally(
    outputs: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor], step_count: float
) -> torch.Tensor:
    """(len(TALLY),) float64 sums over the batch's trained tokens."""
    nll, gate = -outputs["logprob"].double(), outputs["gate"].double()
    sums = [torch.ones_like(nll).sum(), outputs["loss"].detach().double() * step_count]
    sums += [nll.sum(), (gate * nll).sum(), gate.sum()]
    group = inputs["group"][inputs["trained"]] if "group" in inputs else None
    for name in LOGGED:
        if group is None:
            inside = torch.zeros_like(nll)
        elif name == "other":
            inside = (group == OTHER).double()
        else:
            inside = (group & GROUP_BITS[name] > 0).double()
        sums += [inside.sum(), (inside * nll).sum()]
    return torch.stack(sums)


def facts(sums: Sequence[float]) -> dict[str, float]:
    """loss and nll (nats a token; with gates and anchor, and without), gate_mean, mass_gated (the
    share of Σ nll that gates take away), count; nll and count of each group that has tokens."""
    s = dict(zip(TALLY, sums, strict=True))
    count, nll = max(s["count"], 1.0), s["nll"]
    made = {
        "loss": s["loss"] / count,
        "nll": nll / count,
        "gate_mean": s["gate"] / count,
        "mass_gated": 1 - s["gated"] / nll if nll else 0.0,
        "count": s["count"],
    }
    for name in LOGGED:
        if s[f"{name}_count"]:
            made[f"{name}_nll"] = s[f"{name}_nll"] / s[f"{name}_count"]
            made[f"{name}_count"] = s[f"{name}_count"]
    return made


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


class GatedTrainer(Trainer):  # type: ignore[misc]
    """A `transformers.Trainer` that minimises Σ gate · nll / N, N the step's trained tokens.

    The model must have gone through `gate`. Batches hold `input_ids`, `attention_mask` and
    `trained` (B, T), and (B, T) columns such as `base_prob` where the objective reads them; an
    objective with an anchor gets a `reference`. What would replace the loss without a word is
    refused: label smoothing, a loss function of one's own, DeepSpeed's sequence parallelism,
    Liger's fused loss.
    """

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        reference: ReferenceModel | None = None,
        evaluator: Callable[[], dict[str, float]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.evaluator = evaluator
        self.tally = torch.zeros(len(TALLY), dtype=torch.float64, device=self.args.device)
        _refuse(self)
        if objective.anchor and reference is None:
            raise BadInput(f"objective {objective.name!r} needs a reference model")
        if reference and not objective.anchor:
            raise BadInput(f"objective {objective.name!r} has no use for a reference model")
        self.reference = reference
        self.objective = self.step_objective = objective
        self.loss_is_scaled_for_ga = True  # by the count of the whole step

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """The micro-batches of a step, with N over all of them and all ranks."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
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
        """The gated loss. DDP averages gradients over ranks, hence the division of N."""
        assert num_items_in_batch is not None
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
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """What `evaluator` measures, logged."""
        metrics = self.evaluator() if self.evaluator else {}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    @torch.no_grad()
    def _step(self, samples: Sequence[dict[str, torch.Tensor]]) -> BatchStep:
        """A pass without gradients over all micro-batches of the step, on all ranks."""
        # Sorted: the ranks gather column after column, and a set has another order on each.
        reads = tuple(sorted({*self.objective.reads, "logprob"} - set(OF_BASE)))
        was_training = self.model_wrapped.training
        self.model_wrapped.eval()
        tokens, means = [], []
        for sample in samples:
            columns = self.model_wrapped(**self._prepare_inputs(sample), reads=reads)
            given = {n: sample[n][sample["trained"]] for n in self.objective.reads if n in OF_BASE}
            tokens.append(columns | given)
            means.append(_of_examples(columns["logprob"], sample))
        self.model_wrapped.train(was_training)
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
    """One value for each example with a trained token: its mean nll, and the base model's."""
    rows = sample["trained"].nonzero(as_tuple=True)[0].cpu()
    counts = torch.bincount(rows, minlength=len(sample["trained"])).double()
    found = counts > 0
    sums = torch.zeros_like(counts).index_add_(0, rows, -logprob.cpu().double())
    made = {"mean_nll": (sums / counts.clamp(min=1))[found]}
    if "base_mean_nll" in sample:  # the same on all of an example's tokens
        made["base_mean_nll"] = sample["base_mean_nll"].cpu().amax(1)[found]
    return made


def _refuse(trainer: Trainer) -> None:
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
