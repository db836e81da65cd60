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

from eaft_probe.data.messages import REASONING, Message
from eaft_probe.data.rendering.layout import TAG, Layout, Span
from eaft_probe.data.rendering.patterns import Pattern
from eaft_probe.data.rendering.tried_template import CALLED, TWICE, Tools, TriedTemplate
from eaft_probe.errors import RowError

MOST_REMEMBERED = 1000  # orders of roles, and kinds of headers; some kilobytes each
Key = tuple[object, ...]


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

    _starts: dict[Key, int] = field(default_factory=dict)
    _patterns: dict[Key, Pattern | None] = field(default_factory=dict)

    def locate(self, messages: Sequence[Message], turns: Sequence[int], tools: Tools) -> Located:
        """The text, and where each of `turns` lies in it. Raises `RowError`."""
        if tools or self._wants_parts or not all(map(self._is_plain, messages)):
            return self._located(messages, turns, tools)[0]
        key = (*(m.role for m in messages), *turns)
        if pattern := self._patterns.get(key):
            text = self.template.text(messages)
            spans = pattern.fit(text, messages)
            if spans is not None:
                closed = int(bool(pattern.closer))
                return Located(text + pattern.closer, messages, spans, closed=closed)
        located, layout = self._located(messages, turns, tools)
        if len(self._patterns) >= MOST_REMEMBERED:
            self._patterns.clear()
        unchanged = located.messages is messages  # no developer's message became the system's
        self._patterns[key] = _pattern(located, layout) if unchanged else None
        return located

    def _is_plain(self, message: Message) -> bool:
        """Whether it has a content and nothing else, in which no tag is anything to a template."""
        content = message.content
        if message.extra or message.tool_calls or not (message.ends and content.strip()):
            return False
        return not any(tag in content for tag in self._tags)

    @cached_property
    def _tags(self) -> tuple[str, ...]:
        return tuple(chain.from_iterable(self.thoughts))

    def _located(
        self, messages: Sequence[Message], turns: Sequence[int], tools: Tools
    ) -> tuple[Located, Layout]:
        layout = self._with_context(self._accepted(messages, tools), max(turns, default=0), tools)
        spans, text, closed = dict[int, list[Span]](), layout.text, 0
        for turn in turns:
            spans[turn], closer = self._turn(layout, turn, tools)
            if closer:
                text, closed = text + closer, closed + 1
                spans[turn][-1] = (spans[turn][-1][0], len(text))
        return Located(text, layout.messages, spans, layout.left_out(), closed), layout

    def _accepted(self, messages: Sequence[Message], tools: Tools) -> Layout:
        """The conversation, a developer's message as the system's where the template refuses it."""
        try:
            return self.render(messages, tools)
        except RowError:
            if any(m.role == "developer" for m in messages):
                with suppress(RowError):
                    return self.render(_as_system(messages), tools)
            raise

    def _with_context(self, layout: Layout, last: int, tools: Tools) -> Layout:
        """The layout, where every message before the last trained one is shown; a developer's
        message, where need be, as the system's. Raises `RowError` for one that is not."""
        hidden = (i for i in range(last) if layout.has_words(i) and not layout.shows(i))
        index = next(hidden, None)
        if index is None:
            return layout
        role = layout.messages[index].role
        if role == "developer":
            as_system = self.render(_as_system(layout.messages), tools)
            return self._with_context(as_system, last, tools)
        raise RowError(
            f"the chat template does not show message {index} ({role}), which a later answer "
            f"refers to; try --tool-calls inline or --chat-template"
        )

    # --- one turn ---

    def _turn(self, layout: Layout, turn: int, tools: Tools) -> tuple[list[Span], str]:
        """The turn's spans, and what closes it where the template leaves it open."""
        message, words = layout.messages[turn], layout.words(turn)
        if words is None:
            return [], ""
        first, past = words
        answers = message.role == "assistant"
        if answers and self.template.has_marks:
            end = len(layout.text) if message.ends else past
            return [(a, min(b, end)) for a, b in layout.marked(turn) if a < end], ""
        start = self._start(layout, turn, words, tools) if answers else first
        end, closer = self._end(layout, turn, words) if message.ends else (past, "")
        return self._without_others(layout, turn, (start, end)), closer

    def _without_others(self, layout: Layout, turn: int, whole: Span) -> list[Span]:
        """The span without other messages' text, the first token of which still ends what the
        model says in front of it, unless a token of its own does."""
        spans, at, text = list[Span](), whole[0], layout.text
        words = layout.words(turn) or whole
        for start, end in layout.foreign(turn, (whole[0], words[1])):
            if at < start:
                ended = any(text.endswith(c, at, start) for c in self.closers)
                token = None if ended else self._token.match(text, start)
                spans.append((at, token.end() if token else start))
            at = max(at, end)
        return [(a, b) for a, b in [*spans, (at, whole[1])] if a < b]

    def _start(self, layout: Layout, turn: int, words: Span, tools: Tools) -> int:
        """Where the generation prompt ends. Found once for each kind of header."""
        message, text = layout.messages[turn], layout.text
        before, first = layout.before(words[0]), words[0]
        written, shown = TAG.match(message.content), TAG.match(text, first)
        empty_thought = any(
            re.search(rf"{re.escape(opening)}\s*{re.escape(closing)}", message.content)
            for opening, closing in self.thoughts
        )
        key = (
            text[before:first],
            layout.messages[turn - 1].role if turn else None,
            bool(tools),
            bool(message.tool_calls),
            any(message.extra.get(n) for n in REASONING),
            written and written[0],
            shown and shown[0],
            empty_thought,
        )
        if key not in self._starts:
            start = self._prompt_end(layout, turn, words, before, tools)
            if not empty_thought:
                start = self._behind_empty_thought(text, start, first)
            if len(self._starts) >= MOST_REMEMBERED:  # where a call's id stands in front of it
                self._starts.clear()
            self._starts[key] = start - first
        return first + self._starts[key]

    def _prompt_end(self, layout: Layout, turn: int, words: Span, before: int, tools: Tools) -> int:
        text = layout.text
        prompt, header = self._prompt(layout.messages[:turn], tools)
        fits = bool(prompt) and text.startswith(prompt) and len(prompt) >= before
        if header and fits:
            return len(prompt)
        behind_header = self._behind_header(text, header, before, words[0])
        if behind_header is not None:
            return behind_header
        first = len(prompt) if fits else max(before, layout.around(turn, words)[0])
        # A template that is not asked for a header writes it at the answer alone.
        own = self._header.strip()
        at = text.find(own, first, words[0]) if own else -1
        if at < 0 or text[first:at].strip():
            return first
        return _past_blank(text, at + len(own), self._header[len(self._header.rstrip()) :])

    def _prompt(self, messages: Sequence[Message], tools: Tools) -> tuple[str, str]:
        """The text that an answer to these messages continues, and what of it heads the answer."""
        opened = ""
        with suppress(RowError):
            closed, opened = (self.render(messages, tools, prompt=p).text for p in (False, True))
            if opened.startswith(closed):
                return opened, opened[len(closed) :]
        return opened, self.generation_header

    def _behind_header(self, text: str, header: str, before: int, first: int) -> int | None:
        """The end of a header that stands between the words before and the first of the answer;
        with the tag that it opens, where that stands there, too."""
        bare = self._thoughtless(header).strip()
        at = text.rfind(bare, before, first) if bare else -1
        if at < 0:
            return None
        at += len(bare)
        behind = header.partition(bare)[2]
        tags = r"\s*".join(["", *map(re.escape, behind.split())])
        opened = re.compile(tags).match(text, at) if tags else None
        if opened:
            return _past_blank(text, opened.end(), behind[len(behind.rstrip()) :])
        return _past_blank(text, at, behind[: len(behind) - len(behind.lstrip())])

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
            thought = empty.match(text, start)
            if thought and thought.end(1) <= first:
                return min(thought.end(), first)
        return start

    def _end(self, layout: Layout, turn: int, words: Span) -> tuple[int, str]:
        """One past what ends the turn, or where it stays open, and what would close it."""
        message, text, past = layout.messages[turn], layout.text, layout.around(turn, words)[1]
        tokens = list(self._token.finditer(text, words[1], past))
        closing = [t for t in tokens if t[0].strip() in self.closers][:1]
        ends = closing or self._ends(tokens, message)
        if ends:
            return ends[-1].end(), ""
        if message.role != "assistant":
            return words[1], ""  # what comes next is nobody's end of this
        if past < len(text):
            following = self._token.match(text, past)
            return (following.end() if following else past), ""
        return past, self._closers_left_out[bool(message.tool_calls)]

    def _ends(self, tokens: Sequence[re.Match[str]], message: Message) -> Sequence[re.Match[str]]:
        """The tokens behind a turn's words that end more than one of its calls."""
        ends = [t for t in tokens if t[0].strip() not in self._wrappers]
        if not ends and message.tool_calls and self._calls_end_themselves:
            return tokens[-1:]
        return ends

    @cached_property
    def endings(self) -> frozenset[str]:
        """Every token that ends what a model says here."""
        return self.closers.union(*(self._tokens(c)[-1:] for c in self._closers_left_out))

    @cached_property
    def _closers_left_out(self) -> tuple[str, str]:
        """What ends an answer, and a call, where another message follows it."""
        answer = self._closer(TWICE)
        return answer, self._closer(CALLED) or answer

    def _closer(self, messages: Sequence[Message]) -> str:
        """What ends the second message."""
        layout = self._probe(messages)
        words = layout and layout.words(1)
        if not layout or not words:
            return ""
        end, _ = self._end(layout, 1, words)
        ends = self._ends(list(self._token.finditer(layout.text, words[1], end)), messages[1])
        return layout.text[ends[0].start() : end] if ends else ""


def _pattern(located: Located, layout: Layout) -> Pattern | None:
    """What other conversations of the same shape are rendered by, where this one is simple."""
    contents = list[Span]()
    for turn, message in enumerate(layout.messages):
        words = layout.words(turn)
        if not words or layout.text[slice(*words)] not in (
            message.content,
            message.content.strip(),
        ):
            return None
        contents.append(words)
    closer = located.text[len(layout.text) :]
    return None if located.left_out else Pattern.of(layout.text, contents, located.spans, closer)


def _as_system(messages: Sequence[Message]) -> list[Message]:
    return [replace(m, role="system") if m.role == "developer" else m for m in messages]


def _past_blank(text: str, at: int, blank: str) -> int:
    """The place behind the white space, if that is what stands there."""
    return at + len(blank) if text.startswith(blank, at) else at
