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

SAID, MEANT, NAMED = "some answer", "some thought", "some_name"
THOUGHT = ("<think>", "</think>")
ASKED = Message("user", "question")


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


def _call(*names: str) -> Message:
    calls = [
        {
            "id": f"call0000{i}",
            "type": "function",
            "function": {"name": NAMED, "arguments": {n: f"value_{n}"}},
        }
        for i, n in enumerate(names)
    ]
    return Message("assistant", "", tool_calls=calls)


_RESULT = Message("tool", SAID, extra={"name": NAMED, "tool_call_id": "call00000"})
TWICE = (ASKED, Message("assistant", SAID)) * 2
_TOOL = {
    "type": "function",
    "function": {
        "name": NAMED,
        "description": "d",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    },
}
ANSWERED = (ASKED, _call("x"), _RESULT, Message("assistant", SAID))


@dataclass
class TriedTemplate:
    """`stops`: the tokens at which generation ends; `added`: all tokens added to the vocabulary by
    name."""

    template: ChatTemplate
    stops: frozenset[str]
    added: tuple[str, ...]

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
        return [
            what
            for what, messages, index in (
                ("a system message", [Message("system", MEANT), *TWICE[:2]], 0),
                ("an answer to a second question", list(TWICE), 3),
                ("tool calls", called, 1),
                ("tool results", called, 2),
                ("reasoning in a field of its own", [ASKED, thinks], 1),
                ("reasoning of earlier turns", [ASKED, thinks, *TWICE[:2]], 1),
            )
            if not self._shows_whole(messages, index)
        ]

    def _shows_whole(self, messages: Sequence[Message], index: int) -> bool:
        layout = self._probe(messages)
        role = messages[index].role
        return (
            layout is not None
            and layout.shows(index)
            and not any(place.startswith(f"{role}.") for place in layout.left_out())
        )

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
        for messages, turn in ((TWICE, 1), (TWICE, 3), (TWICE[:2], 1)):
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
        layout = self._probe(ANSWERED)
        words = layout and layout.words(1)
        if not layout or not words:
            return False
        following = self._token.match(layout.text, layout.around(1, words)[1])
        header = self._token.match(self._generation_header)
        return bool(following and header and following[0].strip() == header[0].strip())

    def _probe(self, messages: Sequence[Message], prompt: bool = False) -> Layout | None:
        """Some templates want tools where there are calls, some always, and some never."""
        order: list[Any] = [None, [_TOOL]]
        for tools in reversed(order) if any(m.tool_calls for m in messages) else order:
            with suppress(RowError):
                return self.render(messages, tools, prompt=prompt)
        return None
