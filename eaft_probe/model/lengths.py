"""How long an input may be, and where a forward pass depends on how long it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from eaft_probe.model.resolve import CONTEXT_KEYS, NO_LIMIT

# Kinds of rope whose configs may give the length without the factor; those of the others, and of
# ropes that differ from layer to layer (Gemma-3), have it within max_position_embeddings.
STRETCHED = ("linear", "dynamic", "yarn")


@dataclass(frozen=True, slots=True)
class Border:
    """A length up to which a token's numbers do not depend on how long its input is.

    Beyond it they do, padding counted: LongRoPE has other frequencies, the same for all lengths,
    dynamic NTK (`each`) others for every length.
    """

    at: int  # tokens
    each: bool

    def regime(self, length: int) -> int:
        """Inputs of the same regime, padded to the longest, keep their numbers."""
        return 0 if length <= self.at else length if self.each else 1


def regimes(*ropes: tuple[Border, ...]) -> Callable[[int], tuple[int, ...]]:
    """Length → its regime under every border of one or several models."""
    return lambda length: tuple(border.regime(length) for rope in ropes for border in rope)


# Rows that a pass of their own reads, and up to which column; together all rows of a batch.
Passes = list[tuple[list[int], int]]


def passes_of(lengths: Sequence[int], regime: Callable[[int], tuple[int, ...]]) -> Passes:
    """Rows of one regime together, each pass as long as its longest row."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for row, length in enumerate(lengths):
        alike.setdefault(regime(length), []).append(row)
    return [(rows, max(lengths[r] for r in rows)) for rows in alike.values()]


def in_passes(run: Callable[[list[int], int], torch.Tensor], passes: Passes) -> torch.Tensor:
    """(B, T, D) states of a batch, of which `run` gives those of some rows up to a column."""
    width = max(length for _, length in passes)
    states = [
        torch.nn.functional.pad(run(rows, length), (0, 0, 0, width - length))
        for rows, length in passes
    ]
    order = torch.tensor([row for rows, _ in passes for row in rows])
    return torch.cat(states)[order.argsort().to(states[0].device)]


def packed_lengths(position_ids: torch.Tensor) -> list[int]:
    """The lengths of examples that follow one another in (B, T), each from position 0."""
    starts = (position_ids == 0).flatten().nonzero()[:, 0].tolist()
    return [end - start for start, end in pairwise([*starts, position_ids.numel()])]


def borders(config: PreTrainedConfig) -> tuple[Border, ...]:
    """Of the ropes of a (text) config, one for each kind of layer in a few; and of its sparse
    attention: of keys that score 0 alike, which are among the best depends on how many there are,
    padding counted."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds_of_layer = [part for part in rope.values() if isinstance(part, dict)]
    of_ropes = [_border(config, part) for part in kinds_of_layer or [rope]]
    if best := getattr(config, "index_topk", None):
        of_ropes.append(Border(int(best), True))
    return tuple(dict.fromkeys(border for border in of_ropes if border is not None))


def _border(config: PreTrainedConfig, rope: dict[str, Any]) -> Border | None:
    kind = str(rope.get("rope_type", rope.get("type")))
    if kind == "longrope":
        return Border(int(rope["original_max_position_embeddings"]), False)
    return Border(int(config.max_position_embeddings), True) if "dynamic" in kind else None


def longest_input(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that a model reads at most; NO_LIMIT where neither it nor its tokenizer says."""
    longest = int(next((v for k in CONTEXT_KEYS if (v := getattr(config, k, None))), NO_LIMIT))
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in STRETCHED:
        trained = rope.get("original_max_position_embeddings") or longest
        longest = max(longest, int(trained * rope.get("factor", 1.0)))
    return min(longest, int(getattr(tokenizer, "model_max_length", NO_LIMIT)), NO_LIMIT)


def forget_lengths(model: torch.nn.Module) -> list[RemovableHandle]:
    """Resets a model with dynamic NTK before every pass; the hooks that do it.

    `transformers` keeps the frequencies of the longest input so far, so that a shorter one beyond
    the border would depend on what was read before it.
    """
    return [
        module.register_forward_pre_hook(_reset)
        for module in model.modules()
        if hasattr(module, "max_seq_len_cached") and "dynamic" in str(module.rope_type)
    ]


def _reset(rope: torch.nn.Module, _: object) -> None:
    for name in [n for n in vars(rope) if n.endswith("max_seq_len_cached")]:
        current = name.replace("max_seq_len_cached", "inv_freq")
        original = getattr(rope, name.replace("max_seq_len_cached", "original_inv_freq"), None)
        if original is not None:  # else the length that all kinds of layers begin with
            frequencies = original.to(getattr(rope, current).device)
            rope.register_buffer(current, frequencies, persistent=False)
            setattr(rope, name, rope.original_max_seq_len)
