"""Gates of tokens → gates of the characters of a message's content, as trainers' files say them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eaft_probe.data.messages import REASONING
from eaft_probe.objectives.scan_columns import Arrays
from eaft_probe.verbs.export.renderings import Gates, Rendering

Message = Mapping[str, Any]  # as `examples.messages` has it


@dataclass(frozen=True)
class TurnGates:
    """The gates of one message's tokens."""

    message: Message
    gates: Gates  # (N,) of all of its trained tokens
    content: Gates  # (characters of the content,); empty where it is not found in the text
    before: Gates  # of the tokens before the content: a header, a thought
    after: Gates  # of those behind it: calls, the end of the turn
    halves: int  # tokens that share a character with one of another gate

    @property
    def alike(self) -> bool:
        """Whether the whole message has one gate."""
        every = np.concatenate([self.gates, self.content])
        return bool((every == every[:1]).all())

    @property
    def trained(self) -> bool:
        return bool(self.gates.any())

    @property
    def found(self) -> bool:
        return len(self.content) == len(self.message["content"])

    @property
    def runs(self) -> Iterator[tuple[int, int, float]]:
        """(first character, one past the last, gate), one behind the other."""
        cuts = (np.flatnonzero(np.diff(self.content)) + 1).tolist()
        for start, past in pairwise([0, *cuts, len(self.content)]):
            yield start, past, float(self.content[start])


def turn_gates(rendering: Rendering, turn: int, message: Message) -> TurnGates:
    """The tokens of a turn against its content, which the text shows whole or stripped."""
    own = rendering.tokens["turn"] == turn
    tokens = {name: column[own] for name, column in rendering.tokens.items()}
    gates, content = rendering.gates[own], message["content"]
    none = gates[:0]
    if not len(gates):
        return TurnGates(message, none, np.zeros(len(content), np.float32), none, none, 0)
    if not content:
        return TurnGates(message, gates, none, none, gates, 0)
    start, past = int(tokens["char_start"][0]), int(tokens["char_end"].max())
    place = _place(rendering.text, start, past, message)
    if place is None:
        return TurnGates(message, gates, none, none, none, 0)
    shown, lead, length = place
    before, after = tokens["char_end"] <= shown, tokens["char_start"] >= shown + length
    characters, halves = _characters(tokens, gates, ~(before | after), shown, length)
    padded = np.pad(characters, (lead, len(content) - lead - length), "edge")
    return TurnGates(message, gates, padded, gates[before], gates[after], halves)


def _place(text: str, start: int, past: int, message: Message) -> tuple[int, int, int] | None:
    """Where the text of a turn from `start` to `past` shows the content, how many of its first
    characters it leaves out, and how many it shows. Behind a thought, which may say the same;
    None where a header, too, may be the content."""
    content = message["content"]
    for thought in (message.get(name) for name in REASONING):
        if isinstance(thought, str) and thought.strip():
            at = text.find(thought.strip(), start)
            start = max(start, at + len(thought.strip())) if at >= 0 else start
    for shown in (content, content.strip()):
        at = text.find(shown, start) if shown else -1
        headed = at >= 0 and text[start:at].strip()
        if headed and text.find(shown, at + 1, past) >= 0:
            return None
        if at >= 0:
            return at, content.find(shown), len(shown)
    return None


def _characters(
    tokens: Arrays, gates: Gates, inside: NDArray[np.bool_], shown: int, length: int
) -> tuple[Gates, int]:
    """(length,) gates of characters, 0 where no token is trained; of one that belongs to several
    tokens the smallest. And how many tokens lose their own gate by that."""
    characters, halves = np.full(length, np.nan, np.float32), 0
    spans = zip(tokens["char_start"][inside], tokens["char_end"][inside], strict=True)
    for (start, past), gate in zip(spans, gates[inside].tolist(), strict=True):
        own = characters[max(start - shown, 0) : past - shown]
        halves += bool((own[~np.isnan(own)] != np.float32(gate)).any())
        np.fmin(own, np.float32(gate), out=own)
    return np.nan_to_num(characters, nan=0.0), halves
