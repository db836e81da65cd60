"""Where the tokens of a turn lie in a rendered conversation: what the model would have to say.

From the end of the generation prompt to the token that ends the turn, without what belongs to other
messages. Every character's origin is known (`chat_template.py`), so nothing is searched for but the
generation prompt, of which a template says by itself what it is, and the tokens that end a turn.
"""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

from eaft_probe.data.messages import Message
from eaft_probe.data.rendering.chat_template import REASONING
from eaft_probe.data.rendering.layout import TAG, Layout, Span
from eaft_probe.data.rendering.patterns import Pattern
from eaft_probe.data.rendering.tried_template import ANSWERED, TWICE, TriedTemplate
from eaft_probe.errors import RowError

MOST_REMEMBERED = 1000  # orders of roles, and places of answers; some kilobytes each


@dataclass(frozen=True)
class Located:
    """A conversation as text, with what is trained of it."""

    text: str
    messages: Sequence[Message]
    spans: dict[int, list[Span]]  # turn → its spans; none for a turn that is not shown
    left_out: Counter[str] = field(default_factory=Counter)  # role.field → characters
    closed: int = 0  # turns whose end the template does not write


@dataclass
class Locator(TriedTemplate):
    """Finds the trained spans under one template."""

    _starts: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _patterns: dict[tuple[Any, ...], Pattern | None] = field(default_factory=dict)

    def locate(self, messages: Sequence[Message], turns: Sequence[int], tools: Any) -> Located:
        """The text, and where each of `turns` lies in it. Raises `RowError`."""
        if tools or self._wants_parts or not all(map(self._is_plain, messages)):
            return self._located(messages, turns, tools)[0]
        key = (*(m.role for m in messages), *turns)
        if key in self._patterns and (pattern := self._patterns[key]):
            text = self.template.text(messages)
            spans = pattern.fit(text, messages)
            if spans is not None:
                closed = int(bool(pattern.closer))
                return Located(text + pattern.closer, messages, spans, closed=closed)
        located, layout = self._located(messages, turns, tools)
        if len(self._patterns) >= MOST_REMEMBERED:
            self._patterns.clear()
        as_given = located.messages is messages  # not a developer's as the system's
        self._patterns[key] = _pattern(located, layout) if as_given else None
        return located

    def _is_plain(self, message: Message) -> bool:
        """Whether it has a content and nothing else, in which no tag is anything to a template."""
        bare = not (message.extra or message.tool_calls) and message.ends
        content = message.content
        return bare and bool(content.strip()) and not any(t in content for t in self._tags)

    @cached_property
    def _tags(self) -> tuple[str, ...]:
        return tuple(chain.from_iterable(self.thoughts))

    def _located(
        self, messages: Sequence[Message], turns: Sequence[int], tools: Any
    ) -> tuple[Located, Layout]:
        layout = self._with_context(self._taken(messages, tools), max(turns, default=0), tools)
        spans, text, closed = dict[int, list[Span]](), layout.text, 0
        for turn in turns:
            spans[turn], closer = self._turn(layout, turn, tools)
            if closer:
                (start, _), past = spans[turn].pop(), len(text) + len(closer)
                spans[turn].append((start, past))
                text, closed = text + closer, closed + 1
        return Located(text, layout.messages, spans, layout.left_out(), closed), layout

    def _taken(self, messages: Sequence[Message], tools: Any) -> Layout:
        """The conversation, a developer's message as the system's where the template refuses it."""
        try:
            return self.render(messages, tools)
        except RowError:
            if not any(m.role == "developer" for m in messages):
                raise
            with suppress(RowError):
                return self.render(_as_system(messages), tools)
            raise

    def _with_context(self, layout: Layout, last: int, tools: Any) -> Layout:
        """The layout, where every message before the last trained one is shown; a developer's
        message, where need be, as the system's. Raises `RowError` for one that is not."""
        for index in range(last):
            if layout.shows(index) or not layout.has_words(index):
                continue
            message = layout.messages[index]
            if message.role == "developer":
                as_system = self.render(_as_system(layout.messages), tools)
                return self._with_context(as_system, last, tools)
            raise RowError(
                f"the chat template does not show message {index} ({message.role}), "
                f"which a later answer refers to; --tool-calls inline or "
                f"--chat-template may help"
            )
        return layout

    # --- one turn ---

    def _turn(self, layout: Layout, turn: int, tools: Any) -> tuple[list[Span], str]:
        """The turn's spans, and what closes it where the template leaves it open."""
        message, words = layout.messages[turn], layout.words(turn)
        if words is None:
            return [], ""
        if self.template.has_marks and message.role == "assistant":
            spans = layout.marked(turn)
            return (spans if message.ends else _until(spans, words[1])), ""
        answers = message.role == "assistant"
        start = self._start(layout, turn, words, tools) if answers else words[0]
        if not message.ends:
            return self._without_others(layout, turn, (start, words[1])), ""
        end, closer = self._end(layout, turn, words)
        return self._without_others(layout, turn, (start, end)), closer

    def _without_others(self, layout: Layout, turn: int, whole: Span) -> list[Span]:
        """The span without other messages' text, the first token of which still ends what the
        model says in front of it, unless a token of its own does."""
        found, at, text = list[Span](), whole[0], layout.text
        words = layout.words(turn) or whole
        for start, end in layout.foreign(turn, (whole[0], words[1])):
            if at < start:
                ended = any(text.endswith(c, at, start) for c in self.closers)
                token = None if ended else self._token.match(text, start)
                found.append((at, token.end() if token else start))
            at = max(at, end)
        return [s for s in [*found, (at, whole[1])] if s[0] < s[1]]

    def _start(self, layout: Layout, turn: int, words: Span, tools: Any) -> int:
        """Where the generation prompt ends. Found once for each kind of place."""
        message, text = layout.messages[turn], layout.text
        before = layout.before(words[0])
        opening, shown = TAG.match(message.content), TAG.match(text, words[0])
        key = (
            text[before : words[0]],
            layout.messages[turn - 1].role if turn else None,
            bool(tools),
            bool(message.tool_calls),
            _reasons(message),
            opening[0] if opening else None,
            shown[0] if shown else None,
            self._wrote_empty_thought(message),
        )
        if key not in self._starts:
            found = self._prompt_end(layout, turn, words, before, tools)
            if not self._wrote_empty_thought(message):
                found = self._behind_empty_thought(text, found, words[0])
            if len(self._starts) >= MOST_REMEMBERED:  # where a call's id stands in front of it
                self._starts.clear()
            self._starts[key] = found - words[0]
        return words[0] + self._starts[key]

    def _prompt_end(self, layout: Layout, turn: int, words: Span, before: int, tools: Any) -> int:
        text = layout.text
        prompt, header = self._prompt(layout.messages[:turn], tools)
        fits = bool(prompt) and text.startswith(prompt) and len(prompt) >= before
        if header:
            found = len(prompt) if fits else self._behind_header(text, header, before, words[0])
            if found is not None:
                return found
        first = len(prompt) if fits else max(before, layout.around(turn, words)[0])
        # A template that is not asked for a header writes it at the answer alone.
        own = self._header.strip()
        at = text.find(own, first, words[0]) if own else -1
        if at < 0 or text[first:at].strip():
            return first
        end, blank = at + len(own), self._header[len(self._header.rstrip()) :]
        return end + len(blank) if text.startswith(blank, end) else end

    def _prompt(self, messages: Sequence[Message], tools: Any) -> tuple[str, str]:
        """The text that an answer to these messages continues, and what of it heads the answer."""
        try:
            closed, opened = (self.render(messages, tools, prompt=p).text for p in (False, True))
        except RowError:
            return "", self._generation_header
        if not opened.startswith(closed):
            return opened, self._generation_header
        return opened, opened[len(closed) :]

    def _behind_header(self, text: str, header: str, before: int, first: int) -> int | None:
        """The end of a header that stands between the words before and the first of the answer;
        with the tag that it opens, where that stands there, too."""
        bare = self._thoughtless(header)
        at = text.rfind(bare.strip(), before, first) if bare.strip() else -1
        if at < 0:
            return None
        at += len(bare.strip())
        behind = header[header.index(bare.strip()) + len(bare.strip()) :]
        tags = r"\s*".join(["", *map(re.escape, behind.split())])
        opened = re.compile(tags).match(text, at) if tags else None
        end = opened.end() if opened else at
        blank = behind[len(behind.rstrip()) :] if opened else _blank_before(behind)
        return end + len(blank) if text.startswith(blank, end) else end

    def _thoughtless(self, header: str) -> str:
        """A header without the thought that it opens, or opens and closes."""
        for opening, closing in self.thoughts:
            pattern = rf"\s*{re.escape(opening)}\s*(?:{re.escape(closing)}\s*)?$"
            header = re.sub(pattern, "", header)
            header = re.sub(rf"\s*{re.escape(closing)}\s*$", "", header)
        return header

    def _behind_empty_thought(self, text: str, start: int, first: int) -> int:
        """Past a thought that the template puts in of itself, or what is left of one."""
        for opening, closing in self.thoughts:
            empty = re.compile(rf"\s*(?:{re.escape(opening)}\s*)?({re.escape(closing)})\s*")
            found = empty.match(text, start)
            if found and found.end(1) <= first:
                return min(found.end(), first)
        return start

    def _wrote_empty_thought(self, message: Message) -> bool:
        return any(
            re.search(rf"{re.escape(o)}\s*{re.escape(c)}", message.content)
            for o, c in self.thoughts
        )

    def _end(self, layout: Layout, turn: int, words: Span) -> tuple[int, str]:
        """One past what ends the turn, or where it stays open, and what would close it."""
        text, past = layout.text, layout.around(turn, words)[1]
        for token in self._token.finditer(text, words[1], past):
            if token[0].strip() in self.closers:
                return token.end(), ""
        own = [
            t
            for t in self._token.finditer(text, words[1], past)
            if t[0].strip() not in self._wrappers
        ]
        if own:
            return own[-1].end(), ""
        called = bool(layout.messages[turn].tool_calls)
        tail = list(self._token.finditer(text, words[1], past))
        if called and tail and self._calls_end_themselves:
            return tail[-1].end(), ""
        if layout.messages[turn].role != "assistant":
            return words[1], ""  # what comes next is nobody's end of this
        if past < len(text):
            following = self._token.match(text, past)
            return (following.end() if following else past), ""
        return past, self._left_open(called)

    @cached_property
    def endings(self) -> frozenset[str]:
        """Every token that ends what a model says here."""
        opened = (self._token.findall(self._left_open(called)) for called in (False, True))
        return self.closers.union(*({t.strip() for t in tokens[-1:]} for tokens in opened))

    def _left_open(self, called: bool) -> str:
        """What ends such a turn where another message follows it."""
        for closer in (self._closes_calls if called else "", self._closes_answers):
            if closer:
                return closer
        return ""

    @cached_property
    def _closes_answers(self) -> str:
        return self._closes(TWICE, 1)

    @cached_property
    def _closes_calls(self) -> str:
        return self._closes(ANSWERED, 1)

    def _closes(self, messages: Sequence[Message], turn: int) -> str:
        layout = self._probe(messages)
        words = layout and layout.words(turn)
        if not layout or not words:
            return ""
        end, _ = self._end(layout, turn, words)
        tokens = list(self._token.finditer(layout.text, words[1], end))
        own = [t for t in tokens if t[0].strip() not in self._wrappers]
        if not own and messages[turn].tool_calls and self._calls_end_themselves:
            own = tokens[-1:]
        return layout.text[own[0].start() : end] if own else ""


def _pattern(located: Located, layout: Layout) -> Pattern | None:
    """What other conversations of the same shape are rendered by, where this one is simple."""
    words = [layout.words(i) for i in range(len(layout.messages))]
    simple = not located.left_out and all(
        w and layout.text[slice(*w)] in (m.content, m.content.strip())
        for w, m in zip(words, layout.messages, strict=True)
    )
    closer = located.text[len(layout.text) :]
    known = [w for w in words if w]
    return Pattern.of(layout.text, known, located.spans, closer) if simple else None


def _as_system(messages: Sequence[Message]) -> list[Message]:
    return [replace(m, role="system") if m.role == "developer" else m for m in messages]


def _reasons(message: Message) -> bool:
    return any(message.extra.get(n) for n in REASONING)


def _blank_before(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]


def _until(spans: Sequence[Span], end: int) -> list[Span]:
    """What of the spans lies before `end`."""
    return [(a, min(b, end)) for a, b in spans if a < end]
