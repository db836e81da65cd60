"""A chat template, run so that each character it writes says where it comes from.

The environment is the one in which `transformers` runs templates (a test holds the two together),
with three changes: strings of messages are `Traced`, a loop over messages says which message it is
at, and the date is given. So one rendering tells a message's words from the template's, whatever
the template does to them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from time import monotonic as time_now
from typing import Any

import jinja2

from eaft_probe.data.messages import Message
from eaft_probe.data.rendering.timeout import TookTooLong, at_most
from eaft_probe.data.rendering.traced import (
    Piece,
    Pieces,
    Traced,
)
from eaft_probe.data.rendering.tracing import Source, TracingEnvironment
from eaft_probe.errors import BadInput, ModelError, RowError, one_line

# A template renders a row in a millisecond; loops in loops would never end.
SECONDS = 5.0  # of a rendering, and another one for each million characters that it is given
SLOW, MOST_SLOW = 0.1, 10.0  # seconds from which on one counts as slow; of slow ones in a row
LONGEST = 200_000  # characters of a template; those that are known have some 20,000
TOOLS = -2  # the "message" of what `tools` say
REASONING = ("reasoning_content", "thinking", "reasoning")
# Strings by which templates choose what to write; shown or not, they are no words of a message.
LABELS = frozenset(("role", "name", "tool_call_id", "id", "type", "index"))


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as text, piece by piece."""

    text: str
    pieces: Pieces
    sources: Sequence[Source]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with what it reads besides messages and tools. Not for two threads at once.

    `values`: the tokenizer's special tokens and the user's --template-arg. `today`: the date that
    `strftime_now` gives.
    """

    source: str
    values: Mapping[str, Any] = field(default_factory=dict)
    today: date = field(default_factory=date.today)
    slow: list[float] = field(init=False, default_factory=lambda: [0.0], compare=False)  # seconds

    @cached_property
    def _environment(self) -> "TracingEnvironment":
        return TracingEnvironment(self.today)

    @cached_property
    def _plain_environment(self) -> "TracingEnvironment":
        return TracingEnvironment(self.today, instrumented=False)

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return self._environment.from_string(self.source)

    @cached_property
    def _plain(self) -> jinja2.Template:
        """The template for strings without a history, of which nothing is asked."""
        return self._plain_environment.from_string(self.source)

    def compiled(self) -> None:
        """Raises `ModelError`, which says why, where the source is no template."""
        if len(self.source) > LONGEST:
            raise ModelError(f"more than {LONGEST:,} characters")
        try:
            _ = self._compiled
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"line {error.lineno}: {one_line(error)}") from error
        except Exception as error:  # nested too deeply for Jinja, or for Python's own compiler
            raise ModelError(f"{type(error).__name__}: {one_line(error)}") from error

    @cached_property
    def has_marks(self) -> bool:
        """Whether it says with {% generation %} what the assistant writes."""
        return any(
            t == "block_begin" and "generation" in self._after(i)
            for i, (t, _) in enumerate(self._tokens)
        )

    @cached_property
    def _tokens(self) -> list[tuple[str, str]]:
        return [(kind, text) for _, kind, text in self._environment.lex(self.source)]

    def _after(self, at: int) -> list[str]:
        """The name behind a block's beginning."""
        words = (text for kind, text in self._tokens[at + 1 : at + 4] if kind != "whitespace")
        return [next(words, "")]

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        *,
        prompt: bool = False,
        calls_as_text: bool = False,
    ) -> Rendering:
        """Renders a conversation; `prompt` adds the header of an answer to come.

        `calls_as_text`: arguments of tool calls as JSON text, for templates that take no objects.
        Raises `RowError` where the template refuses it, and `ModelError` where it hangs each time.
        """
        given = _Given()
        conversation = [given.message(i, m, calls_as_text) for i, m in enumerate(messages)]
        listed = given.traced(list(tools), TOOLS, "tools") if tools else None
        size = sum(len(source.text) for source in given.sources)
        with self._as_row_error(self._environment, size):
            text = self._environment.run(
                self._compiled,
                conversation,
                given.sources,
                messages=conversation,
                tools=listed,
                documents=None,
                add_generation_prompt=prompt,
                **self.values,
            )
            text.encode()  # '\\ud800' in a template is half a character: no token has it
        return Rendering(str.__str__(text), text._pieces, given.sources)

    def text(self, messages: Sequence[Message]) -> str:
        """The same text alone, of messages with nothing but a content; a fifth of the time."""
        conversation = [{"role": m.role, "content": m.content} for m in messages]
        size = sum(len(m.content) for m in messages)
        with self._as_row_error(self._plain_environment, size):
            given = {
                "messages": conversation,
                "tools": None,
                "documents": None,
                "add_generation_prompt": False,
                **self.values,
            }
            written = self._plain.root_render_func(self._plain.new_context(given))
            return "".join(self._plain_environment.metered(written))

    @contextmanager
    def _as_row_error(self, environment: Any, size: int) -> Iterator[None]:
        """`size`: characters that the template is given."""
        more, began = size / 1e6, time_now()
        try:
            environment.allow(size)
            with at_most(SECONDS + more):
                yield
        except TookTooLong as error:
            raise RowError(f"the chat template ran longer than {SECONDS + more:.3g} s") from error
        except Exception as error:  # a template is a program of somebody else's
            raise RowError(f"the chat template refuses this row: {one_line(error)}") from error
        finally:
            self._add(time_now() - began, SLOW + more)

    def _add(self, seconds: float, slow: float) -> None:
        """Raises `ModelError` where slow renderings add up: a million rows would never be done.
        A quick one makes up for SLOW seconds, so that a busy machine does not add up."""
        self.slow[0] = max(0.0, self.slow[0] + (seconds if seconds > slow else -SLOW))
        if self.slow[0] > MOST_SLOW:
            raise ModelError(
                f"the chat template is too slow: {self.slow[0]:.0f} s for renderings "
                f"that take a millisecond"
            )


def reads_date(source: str) -> bool:
    """Whether what a template writes may depend on the day."""
    return "strftime_now" in source


def read_template(file: str) -> str:
    """The template in a file. Raises `BadInput` where it is none."""
    try:
        source = Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read --chat-template {file}: {one_line(error)}") from error
    try:
        ChatTemplate(source).compiled()
    except ModelError as error:
        raise BadInput(f"--chat-template {file}, {error}") from error
    return source


class _Given:
    """What a template is given: plain JSON values whose strings are numbered."""

    def __init__(self) -> None:
        self.sources: list[Source] = []

    def message(self, index: int, message: Message, calls_as_text: bool) -> dict[str, Any]:
        """The message as a template takes it. Reasoning goes by each name that templates read, as
        in transformers from 5.23 on."""
        made: dict[str, Any] = {}
        for name, value in message.as_dict().items():
            if name == "tool_calls":
                made[name] = [self._call(index, call, calls_as_text) for call in value]
            else:
                made[name] = plain(value) if name in LABELS else self.traced(value, index, name)
        thought = next((made[n] for n in REASONING if made.get(n) is not None), None)
        if thought is not None:
            made = {"thinking": thought, **made, "reasoning_content": thought}
        return made

    def _call(self, index: int, call: Any, as_text: bool) -> Any:
        if not isinstance(call, dict):
            return self.traced(call, index, "tool_calls")
        function = _texted(call.get("function"), as_text)
        if not isinstance(function, dict):
            return plain(call)
        said = {k: self.traced(v, index, "tool_calls") for k, v in function.items()}
        return {**plain(call), "function": said}

    def traced(self, value: Any, message: int, field: str) -> Any:
        """The value with every string as a source of its own; keys, too, where they are said."""
        if isinstance(value, str):
            self.sources.append(Source(message, field, value))
            return Traced(value, (Piece(len(value), len(self.sources) - 1),) if value else ())
        if isinstance(value, Mapping):
            if field not in ("tool_calls", "tools"):  # a part of a content
                return {
                    str(k): plain(v) if k == "type" else self.traced(v, message, field)
                    for k, v in value.items()
                }
            return {
                self.traced(str(k), message, field): self.traced(v, message, field)
                for k, v in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.traced(item, message, field) for item in value]
        return plain(value)


def _texted(function: Any, as_text: bool) -> Any:
    """The function of a call with its arguments as JSON text, where that is asked for."""
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not as_text or arguments is None or isinstance(arguments, str):
        return function
    return {**function, "arguments": json.dumps(arguments, ensure_ascii=False, default=str)}


def plain(value: Any) -> Any:
    """A value of plain JSON types: an object's methods are none of a template's business."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value)
