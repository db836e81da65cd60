"""Where the tokens of a turn lie in a rendered conversation: what the model would have to say.

From the end of the generation prompt to the token that ends the turn, without what belongs to other
messages. Every character's origin is known (`chat_template.py`), so nothing is searched for but the
generation prompt, of which a template says by itself what it is, and the tokens that end a turn.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from math import inf
from typing import Any, Literal, NamedTuple

from eaft_probe.data.messages import Message
from eaft_probe.data.rendering.chat_template import REASONING, TOOLS, ChatTemplate, Rendering
from eaft_probe.data.rendering.patterns import Pattern
from eaft_probe.data.rendering.traced import TEMPLATE, Piece
from eaft_probe.errors import RowError

Span = tuple[int, int]  # first character, one past the last
WORDS = ("content", *REASONING, "tool_calls", "tool_plan")  # the fields that a model would say
MOST_REMEMBERED = 1000  # orders of roles, and places of answers; some kilobytes each
THOUGHT = ("<think>", "</think>")
TAG = re.compile(r"\s*(<[^<>\s]+>|\[/?[A-Z_]+\])\s*")
ASKED = Message("user", "question")
SAID, MEANT, NAMED = "some answer", "some thought", "some_name"


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
        found, at = list[Run](), 0
        for piece in self.rendering.pieces:
            if piece.length:
                found.append(Run(at, at + piece.length, *self._owner(piece)))
                at += piece.length
        merged = (list(g) for _, g in groupby(found, lambda r: (r.owner, r.own)))
        return [g[0]._replace(end=g[-1].end) for g in merged]

    def _owner(self, piece: Piece) -> tuple[int, bool]:
        """Of words shown while the template is at another message: a tool's result within the turn
        that called it is the tool's, a function's name above its result is the result's."""
        if piece.source == TEMPLATE:
            return piece.loop, False
        message, loop = self.rendering.sources[piece.source].message, piece.loop
        if message == loop or loop < 0 or message < 0:
            return message, True
        if self.messages[message].role == "assistant":
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
        first, past = words
        for run in reversed([r for r in self.runs if r.end <= words[0]]):
            if run.own or run.owner != turn:
                break
            first = run.start
        for run in [r for r in self.runs if r.start >= words[1]]:
            if run.own or run.owner not in (turn, TEMPLATE):
                break
            past = run.end
        return first, past

    def foreign(self, turn: int, within: Span) -> list[Span]:
        """What belongs to other messages within a span."""
        start, end = within
        others = (r for r in self.runs if r.owner not in (turn, TEMPLATE))
        return [(max(r.start, start), min(r.end, end)) for r in others
                if r.start < end and r.end > start]  # fmt: skip

    def marked(self, turn: int) -> list[Span]:
        """The spans between generation marks that are this message's; what is marked outside of
        all messages belongs to the last answer before it."""
        found, at, answer = list[Span](), 0, TEMPLATE
        for piece in self.rendering.pieces:
            owner, end = self._owner(piece)[0], at + piece.length
            if owner >= 0 and self.messages[owner].role == "assistant":
                answer = owner
            if piece.marked and piece.length and turn == (answer if owner == TEMPLATE else owner):
                joins = bool(found) and found[-1][1] == at
                found[-1:] = [(found[-1][0], end)] if joins else [*found[-1:], (at, end)]
            at = end
        return found

    def left_out(self) -> Counter[str]:
        """role.field → characters of text that the rendering does not show."""
        shown: dict[int, list[Span]] = {}
        for p in self.rendering.pieces:
            if p.source != TEMPLATE:
                shown.setdefault(p.source, []).append(
                    (p.offset, p.offset + p.length) if p.offset >= 0 else (0, 1 << 31)
                )
        missing = Counter[str]()
        for number, source in enumerate(self.rendering.sources):
            if source.message == TOOLS:
                missing["tools"] += 0 if self.shows(TOOLS) else len(source.text)
            elif source.field in WORDS:
                place = f"{self.messages[source.message].role}.{source.field}"
                gaps = _gaps(source.text, shown.get(number, []))
                missing[place] += sum(map(self._counted, gaps))
        return +missing

    def _counted(self, text: str) -> int:
        """Characters of a gap; a tag that the template writes itself is none."""
        tag = TAG.fullmatch(text)
        return 0 if tag and tag[1] in self.text else len(text.strip())

    def shows(self, index: int, *fields: str) -> bool:
        """Whether anything of a message, or of some fields of it, is shown."""
        sources = self.rendering.sources
        return any(
            p.source != TEMPLATE
            and sources[p.source].message == index
            and (not fields or sources[p.source].field in fields)
            for p in self.rendering.pieces
        )

    def has_words(self, index: int) -> bool:
        return any(s.message == index and s.field in WORDS and s.text.strip()
                   for s in self.rendering.sources)  # fmt: skip


def _gaps(text: str, shown: list[Span]) -> Iterator[str]:
    at = 0
    for start, end in sorted(shown):
        if start > at and text[at:start].strip():
            yield text[at:start]
        at = max(at, end)
    if text[at:].strip():
        yield text[at:]


@dataclass(frozen=True)
class Located:
    """A conversation as text, with what is trained of it."""

    text: str
    messages: Sequence[Message]
    spans: dict[int, list[Span]]  # turn → its spans; none for a turn that is not shown
    left_out: Counter[str] = field(default_factory=Counter)  # role.field → characters
    closed: int = 0  # turns whose end the template does not write


class Shape(NamedTuple):
    """How a message with calls is given to a template: some take arguments as JSON text, and some
    look for calls only where there is no content at all."""

    arguments: Literal["object", "text"] = "object"
    empty: Literal["", "none"] = ""

    def of(self, message: Message, parts: bool) -> Message:
        content: Any = message.content
        if parts:
            content = [{"type": "text", "text": content}]
        if self.empty == "none" and message.tool_calls and not message.content.strip():
            content = None
        return replace(message, content=content)


SHAPES = [Shape(a, e) for e in ("", "none") for a in ("object", "text")]


@dataclass
class Locator:
    """Finds the trained spans under one template. `stops`: the tokens at which generation ends;
    `added`: all tokens added to the vocabulary by name."""

    template: ChatTemplate
    stops: frozenset[str]
    added: tuple[str, ...]
    _starts: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _patterns: dict[tuple[Any, ...], Pattern | None] = field(default_factory=dict)

    def render(self, messages: Sequence[Message], tools: Any, *, prompt: bool = False) -> Layout:
        """The conversation in the shape that the template takes. Raises `RowError`."""
        calls = any(m.tool_calls for m in messages)
        first: RowError | None = None
        for shape in self._shapes if calls else [Shape()]:
            try:
                return self._rendered(messages, tools, shape, prompt)
            except RowError as error:
                first = first or error
        assert first is not None
        raise first

    def _rendered(
        self, messages: Sequence[Message], tools: Any, shape: "Shape", prompt: bool = False
    ) -> Layout:
        given = [shape.of(m, self._wants_parts) for m in messages]
        texts = shape.arguments == "text"
        return Layout(
            self.template.render(given, tools, prompt=prompt, calls_as_text=texts), messages
        )

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
        tags = (tag for pair in self.thoughts for tag in pair)
        return bare and bool(content.strip()) and not any(t in content for t in tags)

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
            raise RowError(f"the chat template does not show message {index} ({message.role}), "
                           f"which a later answer refers to; --tool-calls inline or "
                           f"--chat-template may help")  # fmt: skip
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
            bool(tools), bool(message.tool_calls), _reasons(message),
            opening[0] if opening else None, shown[0] if shown else None,
            self._wrote_empty_thought(message),
        )  # fmt: skip
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
        return any(re.search(rf"{re.escape(o)}\s*{re.escape(c)}", message.content)
                   for o, c in self.thoughts)  # fmt: skip

    def _end(self, layout: Layout, turn: int, words: Span) -> tuple[int, str]:
        """One past what ends the turn, or where it stays open, and what would close it."""
        text, past = layout.text, layout.around(turn, words)[1]
        for token in self._token.finditer(text, words[1], past):
            if token[0].strip() in self.closers:
                return token.end(), ""
        own = [t for t in self._token.finditer(text, words[1], past)
               if t[0].strip() not in self._wrappers]  # fmt: skip
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

    # --- what the template does, tried once ---

    @cached_property
    def _token(self) -> re.Pattern[str]:
        """An added token, with white space before it."""
        return re.compile(rf"\s*(?:{'|'.join(map(re.escape, self.added)) or '(?!)'})")

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether it shows contents as lists of parts alone."""
        asked = [ASKED, Message("assistant", SAID)]
        for parts in (False, True):
            with suppress(RowError):
                if SAID in self.template.render([Shape().of(m, parts) for m in asked]).text:
                    return parts
        return False

    @cached_property
    def _shapes(self) -> list["Shape"]:
        """The shapes of messages with calls; first the one of which the template shows most."""
        messages = [ASKED, _call("x"), _RESULT, Message("assistant", SAID)]

        def missing(shape: Shape) -> float:
            try:
                return self._rendered(messages, [_TOOL], shape).left_out().total()
            except RowError:
                return inf

        return sorted(SHAPES, key=missing)

    @cached_property
    def limits(self) -> list[str]:
        """What the template does not show of conversations, tried out; for people."""
        thinks = Message("assistant", SAID, extra={"reasoning_content": MEANT})
        called = [ASKED, _call("x"), _RESULT, Message("assistant", SAID)]
        return [what for what, messages, index in (
            ("a system message", [Message("system", MEANT), *_TWICE[:2]], 0),
            ("an answer to a second question", list(_TWICE), 3),
            ("tool calls", called, 1),
            ("tool results", called, 2),
            ("reasoning in a field of its own", [ASKED, thinks], 1),
            ("reasoning of earlier turns", [ASKED, thinks, *_TWICE[:2]], 1),
        ) if not self._shows_whole(messages, index)]  # fmt: skip

    def _shows_whole(self, messages: Sequence[Message], index: int) -> bool:
        layout = self._probe(messages)
        role = messages[index].role
        return layout is not None and layout.shows(index) and not any(
            place.startswith(f"{role}.") for place in layout.left_out())  # fmt: skip

    @cached_property
    def _generation_header(self) -> str:
        """What stands behind a question where an answer is asked for."""
        closed, opened = (self._probe([ASKED], prompt=p) for p in (False, True))
        if closed is None or opened is None or not opened.text.startswith(closed.text):
            return ""
        return opened.text[len(closed.text) :]

    @cached_property
    def _header(self) -> str:
        """What the template writes at an answer in front of its words."""
        layout = self._probe([ASKED, Message("assistant", SAID)])
        words = layout and layout.words(1)
        if not layout or not words:
            return ""
        return layout.text[layout.around(1, words)[0] : words[0]]

    @cached_property
    def thoughts(self) -> tuple[tuple[str, str], ...]:
        """The tags around a thought."""
        found = [THOUGHT]
        thinks = Message("assistant", SAID, extra={"reasoning_content": MEANT})
        layout = self._probe([ASKED, thinks])
        if layout and MEANT in layout.text and SAID in layout.text:
            at = layout.text.index(MEANT)
            opened = re.search(r"(<[^<>\s]+>|\[[A-Z_]+\])[^<>\[\]]*$", layout.text[:at])
            closed = TAG.match(layout.text, at + len(MEANT))
            if (
                opened
                and closed
                and {opened[0].strip(), closed[1]}.isdisjoint({*THOUGHT, *self.closers})
            ):
                found.append((opened[0].strip(), closed[1]))
        return tuple(found)

    @cached_property
    def closers(self) -> frozenset[str]:
        """The tokens that end a turn: at which generation stops, or that stand behind every plain
        answer."""
        found = set(self.stops)
        for messages, turn in ((_TWICE, 1), (_TWICE, 3), (_TWICE[:2], 1)):
            tail = self._tail(messages, turn)
            if tail and not any(t in self.stops for t in tail):
                found.add(tail[-1])
        return frozenset(found)

    def _tail(self, messages: Sequence[Message], turn: int) -> list[str]:
        """The added tokens that the template writes at a turn behind its words."""
        layout = self._probe(messages)
        words = layout and layout.words(turn)
        if not layout or not words:
            return []
        past = layout.around(turn, words)[1]
        return [t[0].strip() for t in self._token.finditer(layout.text, words[1], past)]

    @cached_property
    def _wrappers(self) -> frozenset[str]:
        """The tokens between two calls of one turn: they end a call, not the turn."""
        layout = self._probe([ASKED, _call("x", "y")])
        if not layout or not all(n in layout.text for n in ("value_x", "value_y")):
            return frozenset()
        between = layout.text[layout.text.index("value_x") : layout.text.index("value_y")]
        return frozenset(t[0].strip() for t in self._token.finditer(between))

    @cached_property
    def _calls_end_themselves(self) -> bool:
        """Whether what follows a call is the header of any message, and so no word of the model's:
        then what ends the call ends the turn."""
        layout = self._probe(_ANSWERED)
        words = layout and layout.words(1)
        if not layout or not words:
            return False
        following = self._token.match(layout.text, layout.around(1, words)[1])
        header = self._token.match(self._generation_header)
        return bool(following and header and following[0].strip() == header[0].strip())

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
        return self._closes(_TWICE, 1)

    @cached_property
    def _closes_calls(self) -> str:
        return self._closes(_ANSWERED, 1)

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

    def _probe(self, messages: Sequence[Message], prompt: bool = False) -> Layout | None:
        """Some templates want tools where there are calls, some always, and some never."""
        order: list[Any] = [None, [_TOOL]]
        for tools in reversed(order) if any(m.tool_calls for m in messages) else order:
            with suppress(RowError):
                return self.render(messages, tools, prompt=prompt)
        return None


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


_RESULT = Message("tool", SAID, extra={"name": NAMED, "tool_call_id": "call00000"})
_TWICE = (ASKED, Message("assistant", SAID)) * 2
_TOOL = {
    "type": "function",
    "function": {
        "name": NAMED,
        "description": "d",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    },
}


def _call(*names: str) -> Message:
    calls = [{"id": f"call0000{i}", "type": "function",
              "function": {"name": NAMED, "arguments": {n: f"value_{n}"}}}
             for i, n in enumerate(names)]  # fmt: skip
    return Message("assistant", "", tool_calls=calls)


def _as_system(messages: Sequence[Message]) -> list[Message]:
    return [replace(m, role="system") if m.role == "developer" else m for m in messages]


_ANSWERED = (ASKED, _call("x"), _RESULT, Message("assistant", SAID))


def _reasons(message: Message) -> bool:
    return any(message.extra.get(n) for n in REASONING)


def _blank_before(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]


def _until(spans: Sequence[Span], end: int) -> list[Span]:
    """What of the spans lies before `end`."""
    return [(a, min(b, end)) for a, b in spans if a < end]
