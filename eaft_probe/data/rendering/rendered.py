"""An example as token ids, and where each stands in the text."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from eaft_probe.data.messages import Message
from eaft_probe.data.rendering.layout import Span


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example as tokens. T positions."""

    key: str
    text: str
    messages: tuple[Message, ...]
    plain: bool
    ids: NDArray[np.int32]  # (T,)
    trained: NDArray[np.bool_]  # (T,)
    turn: NDArray[np.int16]  # (T,) index of the message; 0 outside trained spans
    # (T, 2) first character in `text` and one past the last; some tokenizers leave white space out
    offsets: NDArray[np.int32]
    special_in_content: int  # how often a content spells a special token
    of_turn: int | None = None  # the only turn trained here, under --turns each
    left_out: Counter[str] = field(default_factory=Counter)  # role.field → characters not shown
    closed: int = 0  # turns that the template leaves open and this program ended
    not_shown: int = 0  # turns to be trained of which the template shows nothing
    not_read: tuple[str, ...] = ()  # columns of the row's prompt or answer that are left aside

    @property
    def chars(self) -> NDArray[np.int32]:
        """(T, 2) the offsets, where a token owns the white space before it."""
        return untrimmed(self.text, self.offsets)

    def cut(self, length: int) -> "Rendered":
        """The first `length` tokens."""
        parts = {n: getattr(self, n)[:length] for n in ("ids", "trained", "turn", "offsets")}
        return replace(self, **parts)


def ends_text(token: Span, text: str) -> bool:
    """Whether the last token really is the end of the text, not one that the tokenizer added."""
    return token[0] < token[1] == len(text)


def as_array(offsets: Sequence[Span]) -> NDArray[np.int32]:
    """(T, 2), in a tenth of the time that `asarray` takes for pairs."""
    flat = np.fromiter(chain.from_iterable(offsets), np.int32, 2 * len(offsets))
    return flat.reshape(-1, 2)


def untrimmed(text: str, offsets: NDArray[np.int32]) -> NDArray[np.int32]:
    """(T, 2) offsets in which a token owns the white space before it, trimmed or not."""
    chars = offsets.copy()
    for at in np.flatnonzero(chars[1:, 0] > chars[:-1, 1]) + 1:
        end, start = chars[at - 1, 1], chars[at, 0]
        if text[end:start].isspace():
            chars[at, 0] = end
    return chars


def marked_tokens(
    text: str, offsets: Sequence[Span], spans: Mapping[int, Sequence[Span]]
) -> tuple[NDArray[np.bool_], NDArray[np.int16]]:
    """(T,) whether each token is trained, and of which turn.

    A token belongs to the span in which its first character lies, or which it reaches from white
    space before it (`▁B` behind `ASSISTANT: `); one without text belongs to none.
    """
    trained, turns = np.zeros(len(offsets), np.bool_), np.zeros(len(offsets), np.int16)
    count = len(offsets)
    while count and offsets[count - 1][0] == offsets[count - 1][1]:
        count -= 1  # without text, at the end: these begin at 0

    def begins(token: int) -> int:
        first, end = offsets[token][0], offsets[token - 1][1] if token else 0
        return end if token and end < first and text[end:first].isspace() else first

    for turn, pieces in spans.items():
        for start, end in pieces:
            first, past = (bisect_left(range(count), at, key=begins) for at in (start, end))
            while first and offsets[first - 1][1] > start:
                if not text[begins(first - 1) : start].isspace():
                    break
                first -= 1
            trained[first:past], turns[first:past] = True, turn
    if any(start == end for start, end in offsets):
        trained &= [start < end for start, end in offsets]
        turns *= trained
    return trained, turns
