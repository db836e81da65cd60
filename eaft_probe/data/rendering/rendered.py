"""An example as token ids, and where each stands in the text."""

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
    chars: NDArray[np.int32]  # (T, 2) first character in `text` and one past the last
    special_in_content: int  # how often a content spells a special token
    of_turn: int | None = None  # the only turn trained here, under --turns each
    left_out: Counter[str] = field(default_factory=Counter)  # role.field → characters not shown
    closed: int = 0  # turns that the template leaves open and this program ended
    not_shown: int = 0  # turns to be trained of which the template shows nothing
    not_read: tuple[str, ...] = ()  # columns of the row's prompt or answer that are left aside

    def cut(self, length: int) -> "Rendered":
        """The first `length` tokens."""
        parts = {n: getattr(self, n)[:length] for n in ("ids", "trained", "turn", "chars")}
        return replace(self, **parts)


def ends_text(chars: NDArray[np.int32], text: str) -> bool:
    """Whether the last token really is the end of the text, not one that the tokenizer added."""
    return bool(chars[1] == len(text) and chars[1] > chars[0])


def untrimmed(text: str, offsets: Sequence[Span]) -> NDArray[np.int32]:
    """(T, 2) offsets in which a token owns the white space before it, trimmed or not."""
    flat = np.fromiter(chain.from_iterable(offsets), np.int32, 2 * len(offsets))
    chars = flat.reshape(-1, 2)  # a tenth of the time that asarray takes for pairs
    for at in np.flatnonzero(chars[1:, 0] > chars[:-1, 1]) + 1:
        end, start = chars[at - 1, 1], chars[at, 0]
        if text[end:start].isspace():
            chars[at, 0] = end
    return chars


def marked_tokens(
    text: str, chars: NDArray[np.int32], spans: Mapping[int, Sequence[Span]]
) -> tuple[NDArray[np.bool_], NDArray[np.int16]]:
    """A token belongs to the span in which its first character lies, or which it reaches from
    white space before it (`▁B` behind `ASSISTANT: `); one without text belongs to none."""
    trained = np.zeros(len(chars), np.bool_)
    turns = np.zeros(len(chars), np.int16)
    real = chars[:, 1] > chars[:, 0]
    starts = np.maximum.accumulate(chars[:, 0])  # one without text, at the end, begins at 0
    for turn, pieces in spans.items():
        for start, end in pieces:
            first, past = starts.searchsorted(np.array((start, end), np.int32)).tolist()
            while (
                first
                and chars[first - 1, 1] > start
                and text[chars[first - 1, 0] : start].isspace()
            ):
                first -= 1
            trained[first:past] = real[first:past]
            turns[first:past][real[first:past]] = turn
    return trained, turns
