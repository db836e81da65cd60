"""The gated loss for who brings a `Trainer` of their own, as its `compute_loss_func`."""

import sys
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from eaft_probe.data.batches import targets
from eaft_probe.errors import BadInput
from eaft_probe.objectives.gates import objective as named
from eaft_probe.objectives.loss import gated_logit_loss
from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.scan_columns import OF_BASE


class GatedLoss:
    """`Trainer(…, compute_loss_func=GatedLoss("eaft", alpha=2))`: Σ gate · nll / N of the logits.

    Called with the model's outputs, labels (B, T) with −100 where nothing is trained, and N, the
    trained tokens of the whole step, which the Trainer counts; without N the batch's own. The
    logits are in memory anyway; `GatedLossMixin` never makes them. A mixture of experts that
    returns its router's `aux_loss` needs `aux_loss_coef`. Raises `BadInput` for an objective that
    needs more than a batch's logits, and for a model that does not hand them over.
    """

    def __init__(
        self,
        objective: str | Objective = "eaft",
        *,
        aux_loss_coef: float | None = None,
        **fields: Any,
    ) -> None:
        if isinstance(objective, Objective) and fields:
            raise BadInput("give an objective's fields where it is made")
        wanted = named(objective, fields) if isinstance(objective, str) else objective
        self.objective, self.aux_loss_coef = wanted, aux_loss_coef
        if wanted.of_step or wanted.of_scan or wanted.anchor or {*wanted.reads} & {*OF_BASE}:
            raise BadInput(
                f"objective {wanted.name!r} needs more than the logits of a batch (its "
                f"step, a scan or a reference); use `eaft-probe train` or "
                f"GatedLossMixin"
            )

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        _require_no_smoothing(sys._getframe(1).f_locals.get("self"))
        logits = _logits(outputs, labels)
        labels = labels.to(logits.device)
        trained = labels != -100
        trained[:, 0] = False  # nothing predicts it
        rows, columns, wanted = targets(labels, trained)
        count = max(float(len(wanted) if num_items_in_batch is None else num_items_in_batch), 1.0)
        loss = gated_logit_loss(logits[rows, columns], wanted, self.objective, count).loss
        total: torch.Tensor = loss + self._auxiliary(outputs, len(wanted) / count)
        return total

    def _auxiliary(self, outputs: Any, share: float) -> Any:
        """The router's loss, by the batch's share of the step's tokens."""
        aux = getattr(outputs, "aux_loss", None)
        if aux is None:
            return 0.0
        if self.aux_loss_coef is None:
            raise BadInput(
                "the model returns its router's aux_loss; give GatedLoss an "
                "aux_loss_coef (0 leaves it out)"
            )
        return self.aux_loss_coef * share * aux


def _require_no_smoothing(caller: Any) -> None:
    """Of the Trainer that calls: it tells its loss function nothing, and leaves label smoothing
    out without a word. Raises `BadInput`."""
    if getattr(getattr(caller, "args", None), "label_smoothing_factor", 0):
        raise BadInput(
            "GatedLoss takes the place of label smoothing; leave label_smoothing_factor out"
        )


def _logits(outputs: Any, labels: Any) -> torch.Tensor:
    logits = getattr(outputs, "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 3 or isinstance(logits, DTensor):
        raise BadInput(
            "the model hands over no whole logits (a fused loss such as Liger's keeps "
            "them, tensor parallelism splits them), so they cannot be gated; switch "
            "that off or use GatedLossMixin"
        )
    if labels is None or labels.shape != logits.shape[:2]:
        raise BadInput(
            f"labels {None if labels is None else tuple(labels.shape)} do not fit "
            f"logits {tuple(logits.shape)}"
        )
    return logits
