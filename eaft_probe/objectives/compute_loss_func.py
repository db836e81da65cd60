"""The gated loss as the `compute_loss_func` of any `Trainer`."""

import sys

import torch
from torch.distributed.tensor import DTensor
from transformers.utils import ModelOutput

from eaft_probe.data.batches import targets
from eaft_probe.errors import BadInput
from eaft_probe.objectives.gates import objective as objective_named
from eaft_probe.objectives.loss import gated_logit_loss
from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.scan_columns import GIVEN


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
        **fields: object,
    ) -> None:
        if isinstance(objective, str):
            objective = objective_named(objective, fields)
        elif fields:
            raise BadInput("set the fields on the objective that you give, or give its name")
        self.objective, self.aux_loss_coef = objective, aux_loss_coef
        if objective.of_step or objective.of_scan or objective.anchor or {*objective.reads} & GIVEN:
            raise BadInput(
                f"objective {objective.name!r} needs more than the logits of a batch (its "
                f"step, a scan or a reference); use `eaft-probe train` or GatedLossMixin"
            )

    def __call__(
        self,
        outputs: ModelOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | float | None = None,
    ) -> torch.Tensor:
        # A Trainer tells its loss function nothing, and silently leaves label smoothing out.
        trainer = sys._getframe(1).f_locals.get("self")
        if getattr(getattr(trainer, "args", None), "label_smoothing_factor", 0):
            raise BadInput("GatedLoss replaces label smoothing; leave label_smoothing_factor out")
        logits = _logits(outputs, labels)
        labels = labels.to(logits.device)
        trained = labels != -100
        trained[:, 0] = False  # nothing predicts it
        rows, columns, wanted = targets(labels, trained)
        count = max(float(len(wanted) if num_items_in_batch is None else num_items_in_batch), 1.0)
        gated = gated_logit_loss(logits[rows, columns], wanted, self.objective, count)
        return gated.loss + self._auxiliary(outputs, len(wanted) / count)

    def _auxiliary(self, outputs: ModelOutput, share: float) -> torch.Tensor | float:
        """The router's loss, by the batch's share of the step's tokens."""
        aux: torch.Tensor | None = getattr(outputs, "aux_loss", None)
        if aux is None:
            return 0.0
        if self.aux_loss_coef is None:
            raise BadInput(
                "the model returns its router's aux_loss; give GatedLoss an aux_loss_coef (0 "
                "leaves it out)"
            )
        return self.aux_loss_coef * share * aux


def _logits(outputs: ModelOutput, labels: torch.Tensor | None) -> torch.Tensor:
    logits = getattr(outputs, "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 3 or isinstance(logits, DTensor):
        raise BadInput(
            "the model hands over no whole logits (a fused loss such as Liger's keeps them, tensor "
            "parallelism splits them), so they cannot be gated; turn that off or use GatedLossMixin"
        )
    if labels is None or labels.shape != logits.shape[:2]:
        shape = None if labels is None else tuple(labels.shape)
        raise BadInput(f"labels {shape} do not fit logits {tuple(logits.shape)}")
    return logits
