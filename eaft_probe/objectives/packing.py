"""Rows packed with several documents, whose borders the collator gives in further tensors."""

from collections.abc import Callable
from typing import Any

import torch

from eaft_probe.errors import BadInput

# Name → tensor, most of them (B, T); of packed rows a collator may also give numbers.
Batch = dict[str, Any]
PACKED = {"position_ids", "seq_idx", "cu_seq_lens_q"}  # what tells documents apart
# How far other documents may move a document's log-probabilities, in nats: as far as a scan's, in
# float32; in half precision a mixture's experts round groups of tokens. A leak moves by more.
APART, APART_HALF = 1e-4, 0.1


def document_starts(inputs: Batch) -> torch.Tensor:
    """(B, T) bool: the first token of each document of a row. No label is predicted there."""
    ids = inputs["input_ids"]
    starts = torch.zeros_like(ids, dtype=torch.bool)
    starts[:, 0] = True
    if "position_ids" in inputs:
        starts |= inputs["position_ids"] == 0
    if "seq_idx" in inputs:
        starts[:, 1:] |= inputs["seq_idx"].diff(dim=1) != 0
    if "cu_seq_lens_q" in inputs:  # of all rows in one
        borders = inputs["cu_seq_lens_q"].long()
        starts.view(-1)[borders[borders < ids.numel()]] = True
    mask = inputs.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        starts &= mask.bool()
    return starts


def later_document(inputs: Batch) -> Batch | None:
    """The batch with a single document trained, one that follows others in its row; None where no
    document of two tokens does."""
    starts = document_starts(inputs)
    document = starts.long().cumsum(1)
    same = document[:, 1:] == document[:, :-1]
    for row, column in (same & (document[:, 1:] > 1)).nonzero()[-1:].tolist():
        trained = torch.zeros_like(starts)
        trained[row] = (document[row] == document[row, column]) & ~starts[row]
        return {**inputs, "trained": trained}
    return None


def _others_changed(inputs: Batch) -> Batch:
    """The batch with other tokens before the trained document."""
    ids, trained = inputs["input_ids"], inputs["trained"]
    first = trained.long().argmax(1, keepdim=True) - 1  # the document's, which predicts
    before = torch.arange(ids.shape[1], device=ids.device) < first
    return {**inputs, "input_ids": torch.where(before, (ids + 1) % (ids.max() + 1), ids)}


def require_apart(inputs: Batch, logprob: Callable[[Batch], torch.Tensor], half: bool) -> None:
    """Raises `BadInput` where the documents of a packed row see one another.

    Jamba, Mamba and MPT accept what tells documents apart and ignore it, and so does every model
    given an attention mask. A batch without a packed row is measured as well: other ranks wait for
    it.
    """
    packed = later_document(inputs)
    before = logprob(packed or inputs)
    after = logprob(_others_changed(packed) if packed else inputs)
    moved = float((before - after).abs().max()) if len(before) else 0.0
    if not moved <= (APART_HALF if half else APART):
        raise BadInput(
            f"packed rows leak: changing one document moved the logprob of another by "
            f"{moved:.2g} nats; turn packing and padding-free batches off, or leave the "
            f"attention_mask out of them"
        )
