"""A causal language model whose forward pass is its gated loss.

Body, head and loss run inside the forward pass of the module that DDP or FSDP wraps: calling the
body by itself would skip their hooks and silently train on wrong gradients.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, Protocol

import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from eaft_probe.columns.measure import Reference, TokenColumns, measure_states
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.data.batches import targets
from eaft_probe.errors import BadInput, ModelError, one_line
from eaft_probe.model.body import UpToHead, named_body, taken_apart
from eaft_probe.model.head import Head, head_of
from eaft_probe.model.lengths import (
    Passes,
    borders,
    forget_lengths,
    in_passes,
    packed_lengths,
    passes_of,
    regimes,
)
from eaft_probe.model.proof import proof_ids
from eaft_probe.objectives.loss import gated_loss
from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.packing import Batch


def gate(model: PreTrainedModel) -> PreTrainedModel:
    """Gives a `transformers` causal language model the gated forward pass, in place.

    model(input_ids, trained=…, objective=…, count=…) then returns `loss` and
    `columns`, see `Gated`; with `reads=(…)` instead, those columns without a graph. What the
    objective reads of a scan comes as `base`, (B, T) columns. Everything else of the model (saving,
    adapters, checkpointing) stays as it is. Raises `ModelError`.
    """
    live_head(model)  # refused now rather than in the first step
    if hasattr(model, BODY):
        return model  # gated before
    body, head = _taken_apart(model)
    known_router = all(hasattr(model, name) for name in ROUTER) and not isinstance(body, UpToHead)
    if _routes(model) and not known_router:
        raise ModelError(
            "the auxiliary loss of this model's router cannot be computed; set "
            "output_router_logits to false in its config"
        )
    forget_lengths(model)
    object.__setattr__(model, BODY, body)  # past torch, which would save its weights twice
    object.__setattr__(model, SHAPE, (head.scale, head.softcap))
    model.forward = MethodType(_forward, model)
    return model


# Attributes of a gated model with what `taken_apart` found: its body, its head's scale and cap.
BODY, SHAPE = "_gated_body", "_gated_shape"


@torch.no_grad()
def _taken_apart(model: PreTrainedModel) -> tuple[PreTrainedModel | UpToHead, Head]:
    """By names where another process holds the weights."""
    weight = model.get_output_embeddings().weight
    if weight.is_meta or weight.dim() != 2:
        return named_body(model), head_of(model)
    with evaluation_mode(model):
        return taken_apart(model, proof_ids(len(weight)).to(weight.device))


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout; afterwards the model is in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def unadapted(model: PreTrainedModel) -> PreTrainedModel:
    """The causal language model inside a PEFT model, which has its adapters within. Raises
    `ModelError` where the adapter is no part of the model but stands before its tokens."""
    if not hasattr(model, "get_base_model"):
        return model
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        raise ModelError(
            f"{adapter.peft_type.value} trains vectors that are not tokens, and a gated loss "
            f"cannot read them; use LoRA"
        )
    return model.get_base_model()


def _forward(
    self: Any,
    input_ids: torch.Tensor,
    *,
    trained: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    objective: Objective | None = None,
    count: float | None = None,
    reads: Sequence[str] = (),
    reference: "ReferenceModel | None" = None,
    base: TokenColumns | None = None,
    **inputs: object,
) -> dict[str, Any]:
    others = {name: value for name, value in inputs.items() if value is not None}
    _require_readable(getattr(self, BODY), others, reference)
    passes = _passes(self, input_ids, attention_mask, others)
    outputs, states = _body(self, input_ids, attention_mask, others, passes)
    rows, columns, labels = targets(input_ids, trained)
    hidden, head, pull = states[rows, columns], _gathered_head(self), None
    if reference is not None:
        theirs = in_passes(lambda r, n: reference.hidden(input_ids[r, :n]), passes)
        pull = Reference(reference.head, theirs[rows, columns])
    if objective is None:
        statistics = [STATISTICS[name] for name in reads]
        return {"columns": measure_states(head, hidden, labels, statistics, pull)}
    assert count is not None, "a loss needs the count of the step's trained tokens"
    base_columns = {n: c[rows, columns + 1] for n, c in base.columns.items()} if base else {}
    gated = gated_loss(head, hidden, labels, objective, count, base_columns, pull)
    loss = gated.loss
    if _routes(self):  # the micro-batch's share: its trained tokens
        loss = loss + _router_loss(self, outputs, attention_mask) * (len(labels) / count)
    return {"loss": loss, "columns": gated.columns}


def _require_readable(
    body: PreTrainedModel | UpToHead,
    others: Batch,
    reference: "ReferenceModel | None",
) -> None:
    """Raises `BadInput` where body or reference would not see all that a batch holds."""
    parameters = inspect.signature(body.forward).parameters
    unknown = [name for name in others if name not in parameters]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise BadInput(
            f"{type(body).__name__} takes no {', '.join(unknown)}; leave it out of the batch"
        )
    if others and reference is not None:
        raise BadInput(
            f"a reference reads plain rows and would not see {', '.join(others)}; leave it out of "
            f"the batch, and do not pack rows"
        )


def _passes(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    others: Batch,
) -> Passes:
    """Raises `BadInput` where rows need passes of their own and cannot have them."""
    own_borders, rows, width = borders(model.config.get_text_config()), *input_ids.shape
    one_pass = [(list(range(rows)), width)]
    if not own_borders:
        return one_pass
    if "position_ids" in others:
        lengths = packed_lengths(others["position_ids"])
    elif attention_mask is None:
        lengths = [width] * rows
    else:  # one past the last token
        ends = (attention_mask * torch.arange(1, width + 1, device=input_ids.device)).amax(1)
        lengths = ends.clamp(min=1).tolist()
    passes = passes_of(lengths, regimes(own_borders))
    if len(passes) > 1 and (others or _routes(model) or is_sharded(model)):
        raise BadInput(
            f"a step has rows on both sides of {own_borders[0].at:,} tokens, beyond which this "
            f"model's numbers depend on the length of its input; train them one at a time, without "
            f"packing, or cut them to that length"
        )
    return one_pass if others else passes


def is_sharded(model: torch.nn.Module) -> bool:
    return any(isinstance(p, DTensor) for p in model.parameters()) or any(
        isinstance(m, FullyShardedDataParallel) for m in model.modules()
    )


def _body(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    others: Batch,
    passes: Passes,
) -> tuple[ModelOutput, torch.Tensor]:
    """The outputs of the last pass, and (B, T, D) hidden states; `others` go with one pass."""
    outputs: ModelOutput = None
    options = {**others, **({"output_router_logits": True} if _routes(model) else {})}

    def run(rows: list[int], length: int) -> torch.Tensor:
        nonlocal outputs
        ids, mask = input_ids[rows, :length], attention_mask
        if mask is not None:
            options["attention_mask"] = mask[rows, :length]
        outputs = getattr(model, BODY)(input_ids=ids, use_cache=False, **options)
        return outputs[0]  # type: ignore[no-any-return]

    try:
        states = in_passes(run, passes)
    except (TypeError, ValueError) as error:  # where kernels are missing that tell documents apart
        if not others:
            raise
        raise BadInput(
            f"the model cannot take a batch with {', '.join(others)} "
            f"({one_line(error).rstrip('.')}); turn packing and padding-free batches off"
        ) from error
    return outputs, states


# What the models of transformers keep their router's settings in.
ROUTER = ("router_aux_loss_coef", "num_experts", "num_experts_per_tok")


def _routes(model: PreTrainedModel) -> bool:
    """Whether the model's config asks for the router's auxiliary loss."""
    return bool(getattr(model.config.get_text_config(), "output_router_logits", False))


def _router_loss(
    model: PreTrainedModel, outputs: ModelOutput, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """The auxiliary loss as the model's own file defines it, with its coefficient: the config's,
    where TRL keeps its `router_aux_loss_coef`."""
    balance = sys.modules[type(model).__module__].load_balancing_loss_func  # type: ignore[attr-defined]
    coefficient, experts, per_token = (getattr(model, name) for name in ROUTER)
    coefficient = getattr(model.config.get_text_config(), ROUTER[0], coefficient)
    loss = balance(outputs.router_logits, experts, per_token, attention_mask)
    return coefficient * loss  # type: ignore[no-any-return]


class ReferenceModel(Protocol):
    """What an anchor pulls towards: a loaded `CausalLM`, or the model with its adapter off."""

    @property
    def head(self) -> Head: ...

    def hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) → (B, T, D), no graph."""


@dataclass(frozen=True)
class AdapterOff:
    """The base of a PEFT model as reference: no second copy, no dropout. Its rows come as the
    model's own: in passes of one regime."""

    adapted: PreTrainedModel
    head: Head

    @torch.no_grad()
    def hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        with evaluation_mode(self.adapted), self.adapted.disable_adapter():
            base = self.adapted.get_base_model()
            body: Callable[..., tuple[torch.Tensor]] = getattr(base, BODY, None) or named_body(base)
            return body(input_ids=input_ids, use_cache=False)[0]


def live_head(model: PreTrainedModel) -> Head:
    """The head with the parameters that are trained, not copies of them. Raises `ModelError`."""
    module = model.get_output_embeddings()
    if hasattr(module, "modules_to_save"):
        module = module.modules_to_save[module.active_adapter]
    if hasattr(module, "base_layer"):
        raise ModelError(
            "a gated loss cannot train an adapter on the head; leave the head out of the "
            "adapter's target modules, or train it whole"
        )
    if module.weight.is_meta:
        raise ModelError("a head that --device-map offloads cannot be trained; leave the map out")
    head = replace(head_of(model), weight=module.weight, bias=getattr(module, "bias", None))
    scale, cap = getattr(model, SHAPE, (head.scale, head.softcap))
    return replace(head, scale=scale, softcap=cap)


def _gathered_head(model: PreTrainedModel) -> Head:
    """The live head during the forward pass, where sharding must have gathered its weights: the
    head's own hooks do not run, as its weight is read without calling it. Raises `ModelError`."""
    head = live_head(model)
    if isinstance(head.weight, DTensor) or head.weight.dim() != 2:
        raise ModelError(
            "the head's weights are sharded by themselves, so a gated loss cannot read them; shard "
            "them with the final norm or the whole model (FSDP2), without tensor parallelism"
        )
    return head
