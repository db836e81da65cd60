"""How long an input may be, and where a forward pass depends on how long it is."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

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
    given = [border for own in ropes for border in own]
    return lambda length: tuple(border.regime(length) for border in given)


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
    """The lengths of examples that stand behind one another in (B, T), each from position 0."""
    starts = (position_ids == 0).flatten().nonzero()[:, 0].tolist()
    return [end - start for start, end in pairwise([*starts, position_ids.numel()])]


def borders(config: Any) -> tuple[Border, ...]:
    """Of the ropes of a (text) config, one for each kind of layer in a few; and of its sparse
    attention: of keys that score 0 alike, which are among the best hangs on how many there are,
    padding counted."""
    found = [_border(config, rope) for rope in _ropes(config)]
    if best := getattr(config, "index_topk", None):
        found.append(Border(int(best), True))
    return tuple(dict.fromkeys(b for b in found if b is not None))


def _border(config: Any, rope: dict[str, Any]) -> Border | None:
    kind = str(rope.get("rope_type", rope.get("type")))
    if kind == "longrope":
        return Border(int(rope["original_max_position_embeddings"]), False)
    return Border(int(config.max_position_embeddings), True) if "dynamic" in kind else None


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    """The config's rope, or those of its kinds of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in rope.values() if isinstance(part, dict)]
    yield from parts or [rope]


def longest_input(config: Any, tokenizer: Any) -> int:
    """Tokens that a model reads at most; NO_LIMIT where neither it nor its tokenizer says."""
    own = next((v for k in CONTEXT_KEYS if (v := getattr(config, k, None))), NO_LIMIT)
    read = max(int(own), _stretched(config, int(own)))
    return min(read, int(getattr(tokenizer, "model_max_length", NO_LIMIT)), NO_LIMIT)


def _stretched(config: Any, own: int) -> int:
    """The length that the rope's factor makes of the one it was trained on."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in STRETCHED:
        return 0
    return int((rope.get("original_max_position_embeddings") or own) * rope.get("factor", 1.0))


def forget_lengths(model: Any) -> None:
    """Lets every pass of a model with dynamic NTK begin anew.

    `transformers` keeps the frequencies of the longest input so far, so that a shorter one beyond
    the border would hang on what was read before it.
    """
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached") and "dynamic" in str(module.rope_type):
            module.register_forward_pre_hook(_begin_anew)


def _begin_anew(rope: Any, _: Any) -> None:
    kept = [n for n in vars(rope) if n.endswith("max_seq_len_cached")]
    for prefix in (n.removesuffix("max_seq_len_cached") for n in kept):
        if not hasattr(rope, f"{prefix}original_inv_freq"):
            continue  # the length that all kinds of layers begin with
        frequencies: torch.Tensor = getattr(rope, f"{prefix}original_inv_freq")
        here = frequencies.to(getattr(rope, f"{prefix}inv_freq").device)
        rope.register_buffer(f"{prefix}inv_freq", here, persistent=False)
        setattr(rope, f"{prefix}max_seq_len_cached", rope.original_max_seq_len)
