"""What is proven of a model on every load, on a dozen tokens, before a number is taken from it."""

from typing import TYPE_CHECKING

import torch

from eaft_probe.errors import ModelError, one_line
from eaft_probe.model.body import watched
from eaft_probe.model.head import SHAPE_TOLERANCE
from eaft_probe.model.lengths import Border
from eaft_probe.model.prefix import empty_prefix

if TYPE_CHECKING:
    from eaft_probe.model.loading import CausalLM

TOKENS, FIRST = 12, 6  # of the proof; the first must not change with those after them
# Largest difference between states, or products, that should be the same, relative to their size:
# rounding on the way through the layers, or of one dot product.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
# LLM.int8() (arXiv 2208.07339) looks for outliers over the whole input, so that states move by
# 0.018 with its length on a tiny Llama. Its head is held to the bound of any other model.
EIGHT_BITS = 5e-2
PREFIX_ERRORS = (TypeError, ValueError, AttributeError, RuntimeError, LookupError)


@torch.inference_mode()
def prove(lm: "CausalLM", far: bool = True) -> None:
    """Raises `ModelError` unless `head(body(x)) == whole(x).logits`, no position sees a later one,
    and the padding and the total length of the input change nothing, but where it is known.

    Without `far` the borders of its ropes are taken from its config untested."""
    ids = proof_ids(lm.head.vocab_size)
    changed = torch.cat([ids[:, :FIRST], ids[:, FIRST:].flip(1)], dim=1)
    both = torch.cat([ids, changed])
    states = lm.hidden(both)
    _prove_head(lm, states, input_ids=both.to(lm.device))
    first, second = states[:, :FIRST]
    _require_same(lm, first, second, "later tokens")
    _require_same(lm, first, lm.hidden(ids[:, :FIRST])[0], "the length of the input")
    for border in lm.borders if far else ():
        _prove_border(lm, ids, border, first)


def proof_ids(vocab_size: int) -> torch.Tensor:
    """(1, TOKENS)"""
    return torch.randint(vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(0))


def _prove_head(lm: "CausalLM", states: torch.Tensor, **inputs: torch.Tensor) -> None:
    """In three steps, each as tight as its arithmetic: a cap that is missing moves the logits of a
    real model by less than bfloat16 rounds its hidden states."""
    logits, output = watched(lm.whole, **inputs)
    logits, states = logits.float().flatten(0, -2), states.flatten(0, -2)
    head, device = lm.head, lm.head.weight.device
    pairs = [(logits, head.logits(states.to(device)).to(logits.device), lm.tolerance)]
    if output is not None:
        read, raw = (t.flatten(0, -2) for t in output)
        pairs += [
            (read, states, lm.tolerance),
            (raw, head.product(read.to(device)).to(logits.device), lm.tolerance),
            (logits, head.shaped(raw.float().clone()), SHAPE_TOLERANCE),
        ]
    for theirs, ours, tolerance in pairs:
        same_shape = theirs.shape == ours.shape
        if not (same_shape and differ(theirs, ours) <= tolerance):
            shapes = f"shapes {tuple(theirs.shape)} and {tuple(ours.shape)}"
            raise ModelError(
                f"the logits of {lm.described} are not its head over its last hidden states "
                f"({f'relative difference {differ(theirs, ours):.2g}' if same_shape else shapes}), "
                f"so its numbers would be wrong; this architecture is not supported, or its "
                f"weights hold NaN"
            )


def _prove_border(lm: "CausalLM", ids: torch.Tensor, border: Border, states: torch.Tensor) -> None:
    """The same on both sides of a rope's border, which may be too far away to fill with tokens: the
    frequencies follow the greatest position, so the last token is put there, after a gap."""
    within, beyond, farther = (
        _at_length(lm, ids, n) for n in (border.at, border.at + 1, 2 * border.at + TOKENS)
    )
    if border.at >= TOKENS:
        _require_same(lm, states, within, "the length of the input within its rope's border")
    if not border.each:
        _require_same(lm, beyond, farther, "the length of the input beyond its rope's border")


def _at_length(lm: "CausalLM", ids: torch.Tensor, length: int) -> torch.Tensor:
    """(FIRST, D) states of the first ids in an input as long as that, proven to be the model's."""
    positions = torch.arange(ids.shape[1])[None]
    positions[0, -1] = max(length, TOKENS) - 1
    inputs = {"input_ids": ids.to(lm.device), "position_ids": positions.to(lm.device)}
    states: torch.Tensor = lm.body(use_cache=False, **inputs)[0]
    _prove_head(lm, states, **inputs)
    return states[0, :FIRST]


def _require_same(lm: "CausalLM", a: torch.Tensor, b: torch.Tensor, what: str) -> None:
    difference = change(a, b)
    eight_bits = getattr(lm.whole, "is_loaded_in_8bit", False)
    if not difference <= (EIGHT_BITS if eight_bits else lm.tolerance):
        raise ModelError(
            f"the hidden states of {lm.described} change with {what} (relative difference "
            f"{difference:.2g}), so they do not predict the next token; give a causal model (look "
            f"for is_decoder, is_causal or use_bidirectional_attention in its config)"
        )


def change(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far (n, D) states differ, relative to their size. In half precision, where a router may
    send a token to another expert for a rounding, the median over positions."""
    wide, norm = a.float(), torch.linalg.vector_norm
    each = norm(wide - b.float().to(a.device), dim=-1) / norm(wide, dim=-1)
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
        return f"tokens after a prefix get states of shape {tuple(split.shape)}"
    difference = differ(whole, split)
    if difference <= lm.tolerance:
        return None
    return f"tokens after a prefix change by {difference:.2g}"


def differ(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference over the largest value; NaN where either holds NaN."""
    a, b = a.float(), b.float().to(a.device)
    return float((a - b).abs().max() / a.abs().max().clamp(min=1.0))
