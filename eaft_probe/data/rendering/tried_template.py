"""What a chat template does with plain conversations, thoughts and calls: each tried once."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any, Literal, NamedTuple

from eaft_probe.data.messages import Message
from eaft_probe.data.rendering.chat_template import ChatTemplate
from eaft_probe.data.rendering.layout import TAG, Layout
from eaft_probe.errors import RowError

ANSWER, THOUGHT, NAME = "some answer", "some thought", "some_name"
THINK_TAGS = ("<think>", "</think>")
QUESTION = Message("user", "question")


class Shape(NamedTuple):
    """How a message with calls is given to a template: some take arguments as JSON text, and some
    look for calls only where there is no content at all."""

    arguments: Literal["object", "text"] = "object"
    empty: Literal["", "none"] = ""

    def of(self, message: Message, parts: bool) -> Message:
        content: Any = message.content
        if self.empty == "none" and message.tool_calls and not content.strip():
            content = None
        elif parts:
            content = [{"type": "text", "text": content}]
        return replace(message, content=content)


SHAPES = [Shape(a, e) for e in ("", "none") for a in ("object", "text")]
Tools = Sequence[object] | None


def _call(*names: str) -> Message:
    calls = [
        {
            "id": f"call0000{i}",
            "type": "function",
            "function": {"name": NAME, "arguments": {n: f"value_{n}"}},
        }
        for i, n in enumerate(names)
    ]
    return Message("assistant", "", tool_calls=calls)


_RESULT = Message("tool", ANSWER, extra={"name": NAME, "tool_call_id": "call00000"})
ONCE = (QUESTION, Message("assistant", ANSWER))
TWICE = ONCE * 2
_THINKS = Message("assistant", ANSWER, extra={"reasoning_content": THOUGHT})
_TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "d",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    },
}
CALLED = (QUESTION, _call("x"), _RESULT, Message("assistant", ANSWER))


@dataclass
class TriedTemplate:
    """`stops`: the tokens at which generation ends; `added`: all tokens added to the vocabulary by
    name."""

    template: ChatTemplate
    stops: frozenset[str]
    added: tuple[str, ...]

    def render(self, messages: Sequence[Message], tools: Tools, *, prompt: bool = False) -> Layout:
        """The conversation in the shape that the template takes. Raises `RowError`."""
        calls = any(m.tool_calls for m in messages)
        errors = list[RowError]()
        for shape in self._shapes if calls else SHAPES[:1]:
            try:
                return self._rendered(messages, tools, shape, prompt)
            except RowError as error:
                errors.append(error)
        raise errors[0]

    def _rendered(
        self, messages: Sequence[Message], tools: Tools, shape: Shape, prompt: bool = False
    ) -> Layout:
        shaped = [shape.of(m, self._wants_parts) for m in messages]
        as_text = shape.arguments == "text"
        rendering = self.template.render(shaped, tools, prompt=prompt, calls_as_text=as_text)
        return Layout(rendering, messages)

    @cached_property
    def _token(self) -> re.Pattern[str]:
        """An added token, with white space before it."""
        return re.compile(rf"\s*(?:{'|'.join(map(re.escape, self.added)) or '(?!)'})")

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether it shows contents as lists of parts alone."""
        for parts in (False, True):
            with suppress(RowError):
                if ANSWER in self.template.render([Shape().of(m, parts) for m in ONCE]).text:
                    return parts
        return False

    @cached_property
    def _shapes(self) -> list[Shape]:
        """The shapes of messages with calls; first the one of which the template shows most."""

        def missing(shape: Shape) -> float:
            try:
                return self._rendered(CALLED, [_TOOL], shape).left_out().total()
            except RowError:
                return inf

        return sorted(SHAPES, key=missing)

    @cached_property
    def limits(self) -> list[str]:
        """What the template does not show of conversations, tried out; for people."""
        return [
            what
            for what, messages, index in (
                ("a system message", (Message("system", THOUGHT), *ONCE), 0),
                ("an answer to a second question", TWICE, 3),
                ("tool calls", CALLED, 1),
                ("tool results", CALLED, 2),
                ("reasoning in a field of its own", (QUESTION, _THINKS), 1),
                ("reasoning of earlier turns", (QUESTION, _THINKS, *ONCE), 1),
            )
            if not self._shows_whole(messages, index)
        ]

    def _shows_whole(self, messages: Sequence[Message], index: int) -> bool:
        layout, fields = self._probe(messages), f"{messages[index].role}."
        if layout is None or not layout.shows(index):
            return False
        return not any(name.startswith(fields) for name in layout.left_out())

    @cached_property
    def generation_header(self) -> str:
        """What stands behind a question where an answer is asked for."""
        closed, opened = (self._probe([QUESTION], prompt=p) for p in (False, True))
        if closed is None or opened is None or not opened.text.startswith(closed.text):
            return ""
        return opened.text[len(closed.text) :]

    @cached_property
    def _header(self) -> str:
        """What the template writes at an answer in front of its words."""
        return self._around(ONCE, 1)[0]

    @cached_property
    def thoughts(self) -> tuple[tuple[str, str], ...]:
        """The tags around a thought."""
        layout = self._probe([QUESTION, _THINKS])
        if layout and ANSWER in layout.text and THOUGHT in layout.text:
            before, _, behind = layout.text.partition(THOUGHT)
            opening = re.search(r"(<[^<>\s]+>|\[[A-Z_]+\])[^<>\[\]]*$", before)
            closing = TAG.match(behind)
            if opening and closing:
                tags = opening[0].strip(), closing[1]
                if {*THINK_TAGS, *self.closers}.isdisjoint(tags):
                    return THINK_TAGS, tags
        return (THINK_TAGS,)

    @cached_property
    def closers(self) -> frozenset[str]:
        """The tokens that end a turn: at which generation stops, or that stand behind every plain
        answer."""
        closers = set(self.stops)
        for messages, turn in ((TWICE, 1), (TWICE, 3), (ONCE, 1)):
            tokens = self._tokens(self._around(messages, turn)[1])
            if self.stops.isdisjoint(tokens):
                closers.update(tokens[-1:])
        return frozenset(closers)

    def _tokens(self, text: str) -> list[str]:
        """The added tokens in a text of the template's."""
        return [t[0].strip() for t in self._token.finditer(text)]

    def _around(self, messages: Sequence[Message], turn: int) -> tuple[str, str, str]:
        """What the template writes at a turn in front of its words and behind them, and what
        follows the turn."""
        layout = self._probe(messages)
        words = layout and layout.words(turn)
        if not layout or not words:
            return "", "", ""
        first, past = layout.around(turn, words)
        return layout.text[first : words[0]], layout.text[words[1] : past], layout.text[past:]

    @cached_property
    def _wrappers(self) -> frozenset[str]:
        """The tokens between two calls of one turn: they end a call, not the turn."""
        layout = self._probe([QUESTION, _call("x", "y")])
        between = re.search("value_x(.*?)value_y", layout.text if layout else "", re.DOTALL)
        return frozenset(self._tokens(between[1]) if between else ())

    @cached_property
    def _calls_end_themselves(self) -> bool:
        """Whether what follows a call is the header of any message, and so no word of the model's:
        then what ends the call ends the turn."""
        following = self._token.match(self._around(CALLED, 1)[2])
        header = self._token.match(self.generation_header)
        return bool(following and header and following[0].strip() == header[0].strip())

    def _probe(self, messages: Sequence[Message], prompt: bool = False) -> Layout | None:
        """Some templates want tools where there are calls, some always, and some never."""
        calls = any(m.tool_calls for m in messages)
        for tools in ([_TOOL], None) if calls else (None, [_TOOL]):
            with suppress(RowError):
                return self.render(messages, tools, prompt=prompt)
        return None
