"""What is proven of a model on every load, on a dozen tokens, before a number is taken from it."""

from typing import TYPE_CHECKING, Any

import torch

from eaft_probe.errors import ModelError, one_line
from eaft_probe.model.body import Seen, seen
from eaft_probe.model.head import SHAPE_TOLERANCE
from eaft_probe.model.prefix import empty_prefix

if TYPE_CHECKING:
    from eaft_probe.model.loading import CausalLM

TOKENS, KEPT = 12, 6  # of the proof, and those of them that what follows must not change
# Largest difference between states, or products, that should be the same, relative to their size:
# rounding on the way through the layers, or of one dot product.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
# LLM.int8() (arXiv 2208.07339) looks for outliers over the whole input, so that states move by
# 0.018 with its length on a tiny Llama. Its head is held to the bound of any other model.
EIGHT_BITS = 5e-2
PREFIX_ERRORS = (TypeError, ValueError, AttributeError, RuntimeError, LookupError)


@torch.inference_mode()
def prove(lm: "CausalLM", model: Any, far: bool = True) -> None:
    """Raises `ModelError` unless `head(body(x)) == model(x).logits`, no position sees a later one,
    and the padding and the total length of the input change nothing, but where it is known.

    Without `far` the borders of its ropes are taken from its config unseen."""
    ids = proof_ids(lm.head.vocab_size)
    changed = torch.cat([ids[:, :KEPT], ids[:, KEPT:].flip(1)], dim=1)
    both = torch.cat([ids, changed])
    found = seen(model.get_output_embeddings(), lambda: lm.own_logits(model, both))
    states = lm.hidden(both)
    _prove_head(lm, model, found, states)
    kept = states[:, :KEPT]
    _require(lm, model, kept[0], kept[1], "later tokens")
    _require(lm, model, kept[0], lm.hidden(ids[:, :KEPT])[0], "the length of the input")
    for border in lm.borders if far else ():
        _prove_border(lm, model, ids, border.at, kept[0], not border.each)


def proof_ids(vocab_size: int) -> torch.Tensor:
    """(1, TOKENS)"""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (1, TOKENS), generator=generator)


def _prove_head(lm: "CausalLM", model: Any, found: Seen, states: torch.Tensor) -> None:
    """In three steps, each as tight as its arithmetic: a cap that is missing moves the logits of a
    real model by less than bfloat16 rounds its hidden states."""
    assert found.logits is not None
    theirs = found.logits.float().flatten(0, -2)
    rows = states.flatten(0, -2).to(lm.head.weight.device)
    ours = lm.head.logits(rows).to(theirs.device)
    pairs = [(theirs, ours, lm.tolerance)]
    if found.states is not None and found.raw is not None:
        read, raw = found.states.flatten(0, -2), found.raw.flatten(0, -2)
        product = lm.head.product(read.to(rows.device)).to(theirs.device)
        pairs += [
            (read, states.flatten(0, -2), lm.tolerance),
            (raw, product, lm.tolerance),
            (theirs, lm.head.shaped(raw.float().clone()), SHAPE_TOLERANCE),
        ]
    for a, b, tolerance in pairs:
        if a.shape != b.shape or not differ(a, b) <= tolerance:
            raise ModelError(
                f"the logits of {lm.place.name} ({type(model).__name__}) are not its head over "
                f"its last hidden states ({_mismatch(a, b)}), so its numbers would be "
                f"wrong; this architecture is not supported, or its weights hold NaN"
            )


def _prove_border(
    lm: "CausalLM", model: Any, ids: torch.Tensor, at: int, kept: torch.Tensor, one_beyond: bool
) -> None:
    """The same on both sides of a rope's border, which may be too far away to fill with tokens: the
    frequencies follow the greatest position, so the last token is put there, behind a gap."""
    within, beyond, farther = (
        _at_length(lm, model, ids, length) for length in (at, at + 1, 2 * at + TOKENS)
    )
    if at >= TOKENS:
        _require(lm, model, kept, within, "the length of the input within its rope's border")
    if one_beyond:
        _require(lm, model, beyond, farther, "the length of the input beyond its rope's border")


def _at_length(lm: "CausalLM", model: Any, ids: torch.Tensor, length: int) -> torch.Tensor:
    """(KEPT, D) states of the first ids in an input as long as that, proven to be the model's."""
    positions = torch.arange(ids.shape[1])[None]
    positions[0, -1] = max(length, TOKENS) - 1
    inputs = {"input_ids": ids.to(lm.device), "position_ids": positions.to(lm.device)}
    found = seen(model.get_output_embeddings(), lambda: model(use_cache=False, **inputs).logits)
    states: torch.Tensor = lm.body(use_cache=False, **inputs)[0]
    _prove_head(lm, model, found, states)
    return states[0, :KEPT]


def _require(lm: "CausalLM", model: Any, a: torch.Tensor, b: torch.Tensor, what: str) -> None:
    found = change(a, b)
    eight_bits = getattr(model, "is_loaded_in_8bit", False)
    if not found <= (EIGHT_BITS if eight_bits else lm.tolerance):
        raise ModelError(
            f"the hidden states of {lm.place.name} ({type(model).__name__}) change with {what} "
            f"(relative difference {found:.2g}), so they predict no next token; a causal model "
            f"is needed (its config may say is_decoder, is_causal or use_bidirectional_attention)"
        )


def change(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far (n, D) states differ, relative to their size. In half precision, where a router may
    send a token to another expert for a rounding, the median over positions."""
    wide, other = a.float(), b.float().to(a.device)
    each = torch.linalg.vector_norm(wide - other, dim=-1) / torch.linalg.vector_norm(wide, dim=-1)
    return float(each.max() if a.dtype == torch.float32 else each.median())


def why_unshared(lm: "CausalLM") -> str | None:
    """Why no prefix is shared; None where it is. Tried, not guessed: a short input in two steps
    must give what it gives in one."""
    ids = proof_ids(lm.head.vocab_size)
    try:
        if empty_prefix(lm.config) is None:
            return "its layers keep more than keys and values of all tokens"
        whole, split = lm.hidden(ids)[:, 5:], lm.hidden(ids[:, 5:], ids[0, :5])
    except PREFIX_ERRORS as error:
        return one_line(error, 120)
    if whole.shape != split.shape:
        return f"tokens behind one get states of shape {tuple(split.shape)}"
    difference = differ(whole, split)
    return None if difference <= lm.tolerance else f"tokens behind one change by {difference:.2g}"


def differ(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference over the largest value; NaN where either holds NaN."""
    a, b = a.float(), b.float().to(a.device)
    return float((a - b).abs().max() / a.abs().max().clamp(min=1.0))


def _mismatch(theirs: torch.Tensor, ours: torch.Tensor) -> str:
    if theirs.shape != ours.shape:
        return f"shapes {tuple(theirs.shape)} and {tuple(ours.shape)}"
    return f"relative difference {differ(theirs, ours):.2g}"
