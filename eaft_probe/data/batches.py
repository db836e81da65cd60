"""Rendered examples → batches: long text in windows, shared prefixes once, lengths alike."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eaft_probe.data.rendering.rendered import Rendered
from eaft_probe.errors import BadInput

# A shared prefix is used where it saves this share of the estimated work. Below it the copies
# of keys and values eat the gain: 24 shared of 200 tokens (12 %) measured 0.98 times as fast.
WORTH_SHARING = 0.2


@dataclass(frozen=True, slots=True)
class Window:
    """A run of tokens that the model reads at once: an example, or a piece of a long text."""

    example: int  # index into the unit's rendered examples
    start: int  # position of its first token in the example
    ids: NDArray[np.int32]  # (T,)
    trained: NDArray[np.bool_]  # (T,) never true at 0: nothing there predicts it
    within: "tuple[Window, ...]" = ()  # others that it begins with, see `nested`; trained here too

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(N,) examples and (N,) positions of its trained tokens, those of `within` as well."""
        examples = np.full(len(self.ids), self.example)
        for window in self.within:
            examples[: window.past][window.trained[: window.past]] = window.example
        return examples[self.trained], self.start + np.flatnonzero(self.trained)

    @property
    def past(self) -> int:
        """One past its last trained token."""
        return len(self.trained) - int(self.trained[::-1].argmax())

    def begins_with(self, other: "Window") -> bool:
        """Whether the other's tokens, up to its last trained one, are this one's first, and it
        trains none of them."""
        past = other.past
        return (
            past <= len(self.ids)
            and np.array_equal(self.ids[:past], other.ids[:past])
            and self.start == other.start
            and not (self.trained[:past] & other.trained[:past]).any()
        )

    def around(self, other: "Window") -> "Window":
        """This one with the trained tokens of one that it begins with."""
        trained = self.trained.copy()
        trained[: other.past] |= other.trained[: other.past]
        return replace(self, trained=trained, within=(*self.within, other))

    @property
    def first_trained(self) -> int:
        return int(self.trained.argmax())


def windows(
    example: int, rendered: Rendered, max_length: int, stride: int = 1
) -> tuple[list[Window], int]:
    """The example's windows, and how many of its tokens were cut off.

    Conversations are cut at the right. Plain text is split; windows overlap by `stride` tokens, at
    least one, so that every token but the first of the text is predicted once, behind as many.
    """
    length, found = len(rendered.ids), list[Window]()
    starts = range(0, max(length - stride, 1), max_length - stride) if rendered.plain else range(1)
    for start in starts:
        trained = rendered.trained[start : start + max_length].copy()
        trained[: stride if start else 1] = False
        if trained.any():
            ids = rendered.ids[start : start + max_length]
            found.append(Window(example, start, ids, trained))
    return found, 0 if rendered.plain else max(0, length - max_length)


def require_stride(stride: int, max_length: int) -> None:
    """Raises `BadInput` where windows would not get on."""
    if not 1 <= stride < max_length:
        raise BadInput(
            f"--stride should be at least 1 and less than the {max_length:,} tokens of a window, "
            f"found {stride:,}"
        )


def window_start(position: int, max_length: int, stride: int = 1) -> int:
    """Where the window begins that predicts the token at `position`; 0 in a conversation, of
    which there is one window."""
    step = max_length - stride
    return max(0, position - stride) // step * step


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiplications a model spends: `linear` a token, `attention` a pair of positions."""

    linear: float
    attention: float

    def whole(self, length: int) -> float:
        """A sequence alone; causal attention skips half of the pairs."""
        return length * self.linear + length**2 / 2 * self.attention

    def behind(self, prefix: int, length: int) -> float:
        """The rest of a sequence behind a cached prefix; the mask loses the causal skip."""
        rest = length - prefix
        return rest * self.linear + rest * length * self.attention


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """B windows padded at the right, behind the same prefix of P tokens (P may be 0).

    The padding needs no mask: it follows every real token, and attention is causal.
    """

    prefix: NDArray[np.int32]  # (P,)
    input_ids: torch.Tensor  # (B, T) int64
    attention_mask: torch.Tensor  # (B, T) int64, 0 on padding
    trained: torch.Tensor  # (B, T) bool
    window: tuple[Window, ...]  # B of them

    def targets(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where to read hidden states and what they should have predicted; see `targets`."""
        return targets(self.input_ids, self.trained)

    def halves(self) -> "tuple[TokenBatch, TokenBatch]":
        """The same windows in two batches."""
        middle = len(self.window) // 2
        left, right = self.window[:middle], self.window[middle:]
        return batch_of(self.prefix, left), batch_of(self.prefix, right)


def targets(
    input_ids: torch.Tensor, trained: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The only label shift: (N,) batch rows, (N,) columns of the predecessors, (N,) labels.

    input_ids and trained: (B, T); `trained` is false in column 0, which nothing predicts.
    """
    rows, columns = trained.nonzero(as_tuple=True)
    return rows, columns - 1, input_ids[rows, columns]


Regime = tuple[int, ...]


def batches(
    items: Sequence[Window],
    budget: int,
    cost: Cost | None,
    regime: Callable[[int], Regime] = lambda length: (),
) -> Iterator[TokenBatch]:
    """Batches of at most `budget` tokens, padding counted, windows sorted by length.

    With a `cost` (a model that can share prefixes), windows with a long common prefix are put
    behind it wherever that pays. Lengths of another `regime` never come together, and only where
    it is 0 may a prefix be read by itself: elsewhere that is too short to be the same. By default
    no length is of another, as in models whose numbers do not depend on it.
    """
    for alike in sorted({regime(len(w.ids)) for w in items}):
        members = [w for w in items if regime(len(w.ids)) == alike]
        yield from _of_one_regime(members, budget, None if any(alike) else cost)


def _of_one_regime(items: Sequence[Window], budget: int, cost: Cost | None) -> Iterator[TokenBatch]:
    groups = shared_prefixes(without_nested(items), cost) if cost else [(0, list(items))]
    for prefix, members in groups:
        # A row behind a prefix carries a copy of its keys: count a quarter, so that many short
        # rows behind a long prefix do not outgrow a batch of whole rows.
        batch = list[Window]()
        for window in sorted(members, key=lambda w: -len(w.ids)):
            longest = len((batch or [window])[0].ids) - prefix + prefix // 4
            if batch and (len(batch) + 1) * longest > budget:
                yield batch_of(batch[0].ids[:prefix], batch)
                batch = []
            batch.append(window)
        yield batch_of(batch[0].ids[:prefix], batch)


def batch_of(prefix: NDArray[np.int32], members: Sequence[Window]) -> TokenBatch:
    """The windows padded to the longest, without the prefix that they share."""
    skip = len(prefix)
    ids = _padded([w.ids[skip:] for w in members], np.int64)
    mask = _padded([np.ones(len(w.ids) - skip) for w in members], np.int64)
    trained = _padded([w.trained[skip:] for w in members], np.bool_)
    return TokenBatch(prefix, ids, mask, trained, tuple(members))


def _padded(rows: Sequence[NDArray[Any]], dtype: type) -> torch.Tensor:
    """The rows with zeros behind them; a third of the time that torch's `pad_sequence` takes."""
    padded: NDArray[Any] = np.zeros((len(rows), max(map(len, rows))), dtype)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(padded)


def without_nested(items: Sequence[Window]) -> list[Window]:
    """The windows without those that another begins with: its pass gives their numbers, too.

    So are the turns of a conversation, each a rendering of its own, where the template shows a
    history as it showed the turns. Sorted by their tokens, a window stands before what begins
    with it.
    """
    longest = list[Window]()
    for window in sorted(items, key=lambda w: w.ids[: w.past].astype(">i4").tobytes())[::-1]:
        if longest and longest[-1].begins_with(window):
            longest[-1] = longest[-1].around(window)
        else:
            longest.append(window)
    return longest


def shared_prefixes(items: Sequence[Window], cost: Cost) -> list[tuple[int, list[Window]]]:
    """Splits windows into groups behind a common prefix where that saves work.

    Sorted by their tokens, windows with a common prefix are neighbours. A range of neighbours is
    taken as one group or split where the common prefix is shortest, whichever saves more.
    """
    order = sorted(items, key=lambda w: w.ids.astype(">i4").tobytes())
    common = [_common(a.ids, b.ids) for a, b in pairwise(order)]
    grouped = _best(order, common, 0, len(order), cost)[1]
    shared = [(p, order[lo:hi]) for p, lo, hi in grouped if p]
    alone = [w for p, lo, hi in grouped if not p for w in order[lo:hi]]
    return [*shared, *([(0, alone)] if alone else [])]


def _best(
    order: Sequence[Window], common: Sequence[int], lo: int, hi: int, cost: Cost
) -> tuple[float, list[tuple[int, int, int]]]:
    """The saving and the groups (prefix, lo, hi) of the range."""
    if hi - lo < 2 or max(common[lo : hi - 1]) == 0:
        return 0.0, [(0, lo, hi)]
    # The token that predicts the first trained one must stay behind the prefix.
    prefix = min(*common[lo : hi - 1], *(w.first_trained - 1 for w in order[lo:hi]))
    whole = sum(cost.whole(len(w.ids)) for w in order[lo:hi])
    rest = sum(cost.behind(prefix, len(w.ids)) for w in order[lo:hi])
    together = whole - rest - cost.whole(prefix)
    # Of equal ones the middle: else a thousand rows with one system prompt recurse a thousand deep.
    split = 1 + min(range(lo, hi - 1), key=lambda i: (common[i], abs(lo + hi - 2 * i)))
    left, right = (_best(order, common, a, b, cost) for a, b in ((lo, split), (split, hi)))
    if prefix > 0 and together > left[0] + right[0] and together > WORTH_SHARING * whole:
        return together, [(prefix, lo, hi)]
    return left[0] + right[0], [*left[1], *right[1]]


def _common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length
