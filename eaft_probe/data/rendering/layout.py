"""One rendering of a conversation, and which of its characters are which message's."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, takewhile
from typing import NamedTuple

from eaft_probe.data.messages import REASONING, Message
from eaft_probe.data.rendering.chat_template import TOOLS, Rendering
from eaft_probe.data.rendering.traced import DERIVED, TEMPLATE, Piece

Span = tuple[int, int]  # first character, one past the last
TAG = re.compile(r"\s*(<[^<>\s]+>|\[/?[A-Z_]+\])\s*")

WORDS = ("content", *REASONING, "tool_calls", "tool_plan")  # the fields that a model would say


class Run(NamedTuple):
    """Neighbouring characters of one message: its words, or the template's around them."""

    start: int
    end: int
    owner: int  # index of the message, TOOLS, or TEMPLATE for text outside of all messages
    own: bool  # the message's words


@dataclass(frozen=True)
class Layout:
    """Which message each character of a rendering belongs to."""

    rendering: Rendering
    messages: Sequence[Message]

    @property
    def text(self) -> str:
        return self.rendering.text

    @cached_property
    def runs(self) -> list[Run]:
        runs, at = list[Run](), 0
        shown = (p for p in self.rendering.pieces if p.length)
        for (owner, own), pieces in groupby(shown, self._owner):
            start, at = at, at + sum(p.length for p in pieces)
            runs.append(Run(start, at, owner, own))
        return runs

    def _owner(self, piece: Piece) -> tuple[int, bool]:
        """Of words shown while the template is at another message: a tool's result within the turn
        that called it is the tool's, a function's name above its result is the result's."""
        if piece.source == TEMPLATE:
            return piece.loop, False
        message, loop = self.rendering.sources[piece.source].message, piece.loop
        elsewhere = loop >= 0 and message >= 0 and message != loop
        if elsewhere and self.messages[message].role == "assistant":
            return loop, False
        return message, True

    def words(self, turn: int) -> Span | None:
        """From the first to the last of a message's own words; None where none is shown."""
        own = [r for r in self.runs if r.owner == turn and r.own]
        return (own[0].start, own[-1].end) if own else None

    def before(self, at: int) -> int:
        """Where the last words in front of `at` end, whoever's they are."""
        return max((r.end for r in self.runs if r.own and r.end <= at), default=0)

    def around(self, turn: int, words: Span) -> Span:
        """The words with the template's text on both sides that is no other message's."""
        before = reversed([r for r in self.runs if r.end <= words[0]])
        behind = [r for r in self.runs if r.start >= words[1]]
        header = takewhile(lambda r: not r.own and r.owner == turn, before)
        tail = takewhile(lambda r: not r.own and r.owner in (turn, TEMPLATE), behind)
        first = min((r.start for r in header), default=words[0])
        return first, max((r.end for r in tail), default=words[1])

    def foreign(self, turn: int, within: Span) -> list[Span]:
        """What belongs to other messages within a span."""
        start, end = within
        others = (r for r in self.runs if r.owner not in (turn, TEMPLATE))
        return [
            (max(r.start, start), min(r.end, end))
            for r in others
            if r.start < end and r.end > start
        ]

    def marked(self, turn: int) -> list[Span]:
        """The spans between generation marks that are this message's; what is marked outside of
        all messages belongs to the last answer before it."""
        spans, at, answer = list[Span](), 0, TEMPLATE
        for piece in self.rendering.pieces:
            owner, start, at = self._owner(piece)[0], at, at + piece.length
            if owner >= 0 and self.messages[owner].role == "assistant":
                answer = owner
            if piece.marked and piece.length and turn == (answer if owner == TEMPLATE else owner):
                if spans and spans[-1][1] == start:
                    start = spans.pop()[0]
                spans.append((start, at))
        return spans

    def left_out(self) -> Counter[str]:
        """role.field → characters of text that the rendering does not show."""
        shown = defaultdict[int, list[Span]](list)
        for p in self.rendering.pieces:
            whole = p.offset == DERIVED
            shown[p.source].append((0, 1 << 31) if whole else (p.offset, p.offset + p.length))
        missing = Counter[str]()
        for number, source in enumerate(self.rendering.sources):
            if source.message == TOOLS:
                missing["tools"] += 0 if self.shows(TOOLS) else len(source.text)
            elif source.field in WORDS:
                name = f"{self.messages[source.message].role}.{source.field}"
                gaps = _gaps(source.text, shown[number])
                missing[name] += sum(map(self._characters, gaps))
        return +missing

    def _characters(self, gap: str) -> int:
        """Characters of a gap; a tag that the template writes itself counts as none."""
        tag = TAG.fullmatch(gap)
        return 0 if tag and tag[1] in self.text else len(gap.strip())

    def shows(self, index: int) -> bool:
        """Whether anything of a message is shown."""
        own = {n for n, s in enumerate(self.rendering.sources) if s.message == index}
        return any(p.source in own for p in self.rendering.pieces)

    def has_words(self, index: int) -> bool:
        """Whether a message has text that a model would say."""
        return any(
            s.message == index and s.field in WORDS and s.text.strip()
            for s in self.rendering.sources
        )


def _gaps(text: str, shown: list[Span]) -> Iterator[str]:
    """What of a text lies between the spans that are shown, white space aside."""
    at = 0
    for start, end in [*sorted(shown), (len(text), len(text))]:
        if text[at:start].strip():
            yield text[at:start]
        at = max(at, end)
