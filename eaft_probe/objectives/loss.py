"""Σ gate · nll / N through the head in chunks, with exact gradients: never (tokens × vocabulary).

The gate is a number, so the gradient in the logits is gate · (P − onehot) / N, and the gradients in
hidden states, head weight and bias follow by two more products. They are made in the same pass as
the loss: three products with the head, where recomputing the logits in the backward pass would
take four.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from eaft_probe.columns.measure import (
    LogitSlice,
    Reference,
    Scratch,
    TokenColumns,
    full_precision,
    logit_chunks,
    reference_slices,
    slices,
)
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.model.head import Head
from eaft_probe.objectives.objective import Anchor, Objective


@dataclass(frozen=True)
class Gated:
    """A loss, and what it was made of for the log."""

    loss: torch.Tensor  # () with a graph to hidden states, head weight and bias
    columns: TokenColumns  # (N,) `logprob`, `gate`, `kl` where there is an anchor; no graph


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
    with torch.no_grad(), full_precision(hidden):
        sums = _Sums(head, hidden, objective.within(head.vocab_size), count, base or {}, reference)
        for start, logits in logit_chunks(sums.head, sums.hidden):
            sums.add(start, logits, labels)
        value, gradients = sums.loss(), sums.gradients()
    columns = {"logprob": sums.logprob, "gate": sums.gate} | ({"kl": sums.kl} if reference else {})
    loss = _with_gradients(value, gradients, hidden, head.weight, head.bias)
    return Gated(loss, TokenColumns(columns))


def gated_logit_loss(
    logits: torch.Tensor, labels: torch.Tensor, objective: Objective, count: float
) -> Gated:
    """The same loss of (N, V) logits that are in memory already; they are overwritten.

    For objectives that read only columns of the distribution, without an anchor.
    """
    gradient, objective = logits.detach(), objective.within(logits.shape[1])
    logprob = logits.new_zeros(len(logits), dtype=torch.float32)
    gate = torch.zeros_like(logprob)
    scratch = Scratch()
    with torch.no_grad(), full_precision(logits):
        for part in slices(gradient):
            d = LogitSlice(gradient[part].float(), labels[part], scratch=scratch)
            logprob[part] = d.logprob
            gate[part] = objective({n: STATISTICS[n].compute(d) for n in objective.reads})
            gradient[part] = d.logit_gradient().mul_(gate[part, None] / count)
        value = -(gate * logprob).sum() / count
    loss = _with_gradients(value, (gradient,), logits)
    return Gated(loss, TokenColumns({"logprob": logprob, "gate": gate}))


class _Differentiated(torch.autograd.Function):
    """A value whose gradients in the inputs were made together with it."""

    @staticmethod
    def forward(
        ctx: Any,
        value: torch.Tensor,
        gradients: Sequence[torch.Tensor | None],
        *inputs: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gated loss was already differentiated; compute it again")
        gradients, ctx.gradients = ctx.gradients, None
        return (None, None, *(None if g is None else g.mul_(outer[0]) for g in gradients))


_with_gradients: Callable[..., torch.Tensor] = _Differentiated.apply


class _Sums:
    """The loss and its gradients, added up over chunks."""

    def __init__(
        self,
        head: Head,
        hidden: torch.Tensor,
        objective: Objective,
        count: float,
        base: Mapping[str, torch.Tensor],
        reference: Reference | None,
    ) -> None:
        self.head, self.hidden = replace(head, weight=head.weight.detach()), hidden.detach()
        self.objective, self.count, self.base = objective, count, base
        self.reference_logits, self.scratch = reference_slices(reference), Scratch()
        self.d_hidden = torch.empty_like(hidden) if hidden.requires_grad else None
        # Added up in float32 whatever the weights' type: a sum over chunks in bfloat16 stalls.
        self.d_weight, self.d_bias = (
            torch.zeros_like(p, dtype=torch.float32) if p is not None and p.requires_grad else None
            for p in (head.weight, head.bias)
        )
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
                self.head,
                next(self.reference_logits),
                self.scratch,
            )
            self.logprob[part] = d.logprob
            self.gate[part] = gate = self.objective(
                {
                    name: self.base[name][part]
                    if name in self.base
                    else STATISTICS[name].compute(d)
                    for name in self.objective.reads
                }
            )
            delta = d.logit_gradient().mul_(gate[:, None])
            if anchor := self.objective.anchor:
                self.kl[part] = self._anchor(anchor, d, delta)
            logits[inner] = d.through_head(delta).div_(self.count)
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
            self.d_hidden[rows] = self.head.backward(delta).to(self.d_hidden.dtype)
        if self.d_weight is not None:
            self.d_weight.addmm_(delta.t(), self.hidden[rows].float())
        if self.d_bias is not None:
            self.d_bias += delta.sum(0)

    def gradients(self) -> tuple[torch.Tensor | None, ...]:
        """In the hidden states, the head's weight and its bias."""
        of_head, dtype = (self.d_weight, self.d_bias), self.head.weight.dtype
        return (self.d_hidden, *(None if g is None else g.to(dtype) for g in of_head))

    def loss(self) -> torch.Tensor:
        terms = -self.gate * self.logprob
        if anchor := self.objective.anchor:
            terms += anchor.beta * self.kl
        return terms.sum() / self.count
