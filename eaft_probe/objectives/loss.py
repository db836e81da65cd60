"""Σ gate · nll / N through the head in chunks, with exact gradients: never (tokens × vocabulary).

The gate is a number, so the gradient in the logits is gate · (P − onehot) / N, and the gradients in
hidden states, head weight and bias follow by two more products. They are made in the same pass as
the loss: three products with the head, where recomputing the logits in the backward pass would
take four.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from eaft_probe.columns.measure import (
    LogitSlice,
    TokenColumns,
    full_precision,
    logit_chunks,
    slices,
)
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.model.head import Head
from eaft_probe.objectives.objective import Anchor, Objective
from eaft_probe.objectives.scan_columns import OF_BASE


@dataclass(frozen=True)
class Gated:
    """A loss, and what it was made of for the log."""

    loss: torch.Tensor  # () with a graph to hidden states, head weight and bias
    columns: TokenColumns  # (N,) `logprob`, `gate`, `kl` where there is an anchor; no graph


@dataclass(frozen=True)
class Reference:
    """The model that an anchor pulls towards, at the same positions."""

    head: Head
    hidden: torch.Tensor  # (N, D')


def gated_loss(
    head: Head,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    objective: Objective,
    count: float,
    base: Mapping[str, torch.Tensor] | None = None,
    reference: Reference | None = None,
) -> Gated:
    """Σ gate · nll / count, plus β · Σ KL / count where the objective has an anchor.

    hidden: (N, D) states at the positions that predict the (N,) labels. N may be 0: the loss is
    then a zero that is still connected to the graph. count: trained tokens of the whole optimizer
    step, over all micro-batches and ranks. base: (N,) columns such as `base_prob`. The head's
    weight and bias get gradients where they require them. Exact for any gate; the gate itself has
    none (arXiv 2601.02151, Eq. 2).
    """
    if (objective.anchor is None) != (reference is None):
        raise ValueError("an anchor needs a reference, and a reference an anchor")
    call = _Call(head, objective.within(head.vocab_size), count, base or {}, reference)
    apply: Any = _Gated.apply
    with full_precision(hidden):
        loss, logprob, gate, kl = apply(hidden, head.weight, head.bias, labels, call)
    made = {"logprob": logprob, "gate": gate} | ({"kl": kl} if reference else {})
    return Gated(loss, TokenColumns(made))


def gated_logit_loss(
    logits: torch.Tensor, labels: torch.Tensor, objective: Objective, count: float
) -> Gated:
    """The same loss where somebody else has made the (N, V) logits, which it overwrites.

    For objectives that read only columns of the distribution, without an anchor.
    """
    apply: Any = _GatedLogits.apply
    with full_precision(logits):
        loss, logprob, gate = apply(logits, labels, objective.within(logits.shape[1]), count)
    return Gated(loss, TokenColumns({"logprob": logprob, "gate": gate}))


class _GatedLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, objective: Objective, count: float
    ) -> tuple[torch.Tensor, ...]:
        made, logprob = logits.detach(), logits.new_zeros(len(logits), dtype=torch.float32)
        gate = torch.zeros_like(logprob)
        for part in slices(made):
            d = LogitSlice(made[part].float(), labels[part])
            logprob[part] = d.logprob
            gate[part] = objective({n: STATISTICS[n].compute(d) for n in objective.reads})
            made[part] = d.logit_gradient().mul_(gate[part, None] / count)
        ctx.gradient = made
        ctx.mark_non_differentiable(logprob, gate)
        return -(gate * logprob).sum() / count, logprob, gate

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradient is None:
            raise RuntimeError("the gated loss was already differentiated; make it anew")
        made, ctx.gradient = ctx.gradient, None
        return made.mul_(outer[0]), None, None, None


@dataclass(frozen=True)
class _Call:
    """What the loss needs besides tensors that get gradients."""

    head: Head
    objective: Objective
    count: float
    base: Mapping[str, torch.Tensor]
    reference: Reference | None

    def columns(self, d: LogitSlice, part: slice) -> dict[str, torch.Tensor]:
        """The objective's columns of these rows."""
        return {
            name: self.base[name][part] if name in OF_BASE else STATISTICS[name].compute(d)
            for name in self.objective.reads
        }

    def references(self) -> Iterator[torch.Tensor | None]:
        """The reference's logits, slice by slice beside the model's."""
        if self.reference is None:
            while True:
                yield None
        for _, logits in logit_chunks(self.reference.head, self.reference.hidden):
            for part in slices(logits):
                yield logits[part]


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        call: _Call,
    ) -> tuple[torch.Tensor, ...]:
        sums = _Sums(ctx.needs_input_grad, hidden, weight, bias, call)
        for start, logits in logit_chunks(sums.call.head, sums.hidden):
            sums.add(start, logits, labels)
        ctx.gradients = sums.gradients(weight.dtype)
        ctx.mark_non_differentiable(sums.logprob, sums.gate, sums.kl)
        return sums.loss(), sums.logprob, sums.gate, sums.kl

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gated loss was already differentiated; make it anew")
        made, ctx.gradients = ctx.gradients, None
        return (*(None if g is None else g.mul_(outer[0]) for g in made), None, None)


class _Sums:
    """The loss and its gradients, added up over chunks."""

    def __init__(
        self,
        wanted: tuple[bool, ...],
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        call: _Call,
    ) -> None:
        self.hidden = hidden.detach()
        head = replace(
            call.head, weight=weight.detach(), bias=None if bias is None else bias.detach()
        )
        self.call = replace(call, head=head)
        self.references = self.call.references()
        self.d_hidden = torch.empty_like(hidden) if wanted[0] else None
        # Added up in float32 whatever the weights' type: a sum over chunks in bfloat16 stalls.
        self.d_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        self.d_bias = weight.new_zeros(len(weight), dtype=torch.float32) if wanted[2] else None
        self.logprob, self.gate, self.kl = (
            hidden.new_zeros(len(hidden), dtype=torch.float32) for _ in range(3)
        )

    def add(self, start: int, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """One product's rows. The logits are overwritten by their gradient."""
        for inner in slices(logits):
            part = slice(start + inner.start, start + inner.stop)
            d = LogitSlice(
                logits[inner],
                labels[part],
                self.hidden[part],
                self.call.head,
                next(self.references),
            )
            self.logprob[part] = d.logprob
            self.gate[part] = gate = self.call.objective(self.call.columns(d, part))
            delta = d.logit_gradient().mul_(gate[:, None])
            if anchor := self.call.objective.anchor:
                self.kl[part] = self._anchor(anchor, d, delta)
            logits[inner] = d.through_head(delta).div_(self.call.count)
        self._products(slice(start, start + len(logits)), logits)

    def _anchor(self, anchor: Anchor, d: LogitSlice, delta: torch.Tensor) -> torch.Tensor:
        """Adds β · d KL / d logits to `delta` and returns KL: forward P − Q, reverse
        P (ln P − ln Q − KL)."""
        theirs, ours = d.log_reference(), d.log_probs()
        if anchor.direction == "forward":
            kl = torch.linalg.vecdot(theirs.exp(), theirs - ours)
            delta.add_(ours.exp() - theirs.exp(), alpha=anchor.beta)
        else:
            kl = torch.linalg.vecdot(ours.exp(), ours - theirs)
            delta.add_(ours.exp() * (ours - theirs - kl[:, None]), alpha=anchor.beta)
        return kl.clamp(min=0)

    def _products(self, rows: slice, delta: torch.Tensor) -> None:
        if self.d_hidden is not None:
            self.d_hidden[rows] = self.call.head.backward(delta).to(self.d_hidden.dtype)
        if self.d_weight is not None:
            self.d_weight.addmm_(delta.t(), self.hidden[rows].float())
        if self.d_bias is not None:
            self.d_bias += delta.sum(0)

    def gradients(self, dtype: torch.dtype) -> tuple[torch.Tensor | None, ...]:
        weights = (None if g is None else g.to(dtype) for g in (self.d_weight, self.d_bias))
        return (self.d_hidden, *weights)

    def loss(self) -> torch.Tensor:
        terms = -self.gate * self.logprob
        if anchor := self.call.objective.anchor:
            terms += anchor.beta * self.kl
        return terms.sum() / self.call.count
