"""A chat template, run so that each character it writes says where it comes from.

The environment is the one in which `transformers` runs templates (a test holds the two together),
with three changes: strings of messages are `Traced`, a loop over messages says which message it is
at, and the date is given. So one rendering tells a message's words from the template's, whatever
the template does to them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from time import monotonic

import jinja2

from eaft_probe.data.messages import REASONING, Message
from eaft_probe.data.rendering.timeout import TookTooLong, at_most
from eaft_probe.data.rendering.traced import Piece, Pieces, Traced
from eaft_probe.data.rendering.tracing import Source, TracingEnvironment, has_marks
from eaft_probe.errors import BadInput, ModelError, RowError, one_line

# A template renders a row in a millisecond; loops in loops would never end.
SECONDS = 5.0  # of a rendering, and another one for each million characters that it is given
SLOW, MOST_SLOW = 0.1, 10.0  # seconds from which a rendering counts as slow; of all slow ones
LONGEST = 200_000  # characters of a template; published ones have up to some 20,000
TOOLS = -2  # the "message" of what `tools` say
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
    values: Mapping[str, object] = field(default_factory=dict)
    today: date = field(default_factory=date.today)
    slow: list[float] = field(init=False, default_factory=lambda: [0.0], compare=False)  # seconds

    def with_values(self, values: Mapping[str, object]) -> "ChatTemplate":
        """The same template, compiled once for both, with more values or others."""
        other = replace(self)
        vars(other).update(vars(self) | {"values": {**self.values, **values}})
        return other

    @cached_property
    def _environment(self) -> TracingEnvironment:
        return TracingEnvironment(self.today)

    @cached_property
    def _plain_environment(self) -> TracingEnvironment:
        return TracingEnvironment(self.today, instrumented=False)

    @cached_property
    def _plain(self) -> jinja2.Template:
        """The template for strings without a history, of which nothing is asked."""
        return self._plain_environment.from_string(self.source)

    @cached_property
    def compiled(self) -> jinja2.Template:
        """The template that tells origins. Raises `ModelError`, which says why there is none."""
        if len(self.source) > LONGEST:
            raise ModelError(f"more than {LONGEST:,} characters")
        try:
            return self._environment.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"line {error.lineno}: {one_line(error)}") from error
        except Exception as error:  # nested too deeply for Jinja, or for Python's own compiler
            raise ModelError(f"{type(error).__name__}: {one_line(error)}") from error

    @cached_property
    def has_marks(self) -> bool:
        """Whether it says with {% generation %} what the assistant writes."""
        return has_marks(self._environment.parse(self.source))

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[object] | None = None,
        *,
        prompt: bool = False,
        calls_as_text: bool = False,
    ) -> Rendering:
        """Renders a conversation; `prompt` adds the header of an answer to come.

        `calls_as_text`: arguments of tool calls as JSON text, for templates that take no objects.
        Raises `RowError` where the template refuses it, and `ModelError` where it hangs each time.
        """
        values = _Values()
        conversation = [values.message(i, m, calls_as_text) for i, m in enumerate(messages)]
        traced_tools = values.traced(tools, TOOLS, "tools") if tools else None
        size = sum(len(source.text) for source in values.sources)
        with self._as_row_error(self._environment, size):
            text = self._environment.run(
                self.compiled,
                conversation,
                values.sources,
                messages=conversation,
                tools=traced_tools,
                documents=None,
                add_generation_prompt=prompt,
                **self.values,
            )
            text.encode()  # '\\ud800' in a template is half a character: no token has it
        return Rendering(str.__str__(text), text._pieces, values.sources)

    def text(self, messages: Sequence[Message]) -> str:
        """The same text alone, of messages with nothing but a content; a fifth of the time."""
        conversation = [{"role": m.role, "content": m.content} for m in messages]
        size = sum(len(m.content) for m in messages)
        with self._as_row_error(self._plain_environment, size):
            context = self._plain.new_context(
                {
                    "messages": conversation,
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": False,
                    **self.values,
                }
            )
            texts = self._plain.root_render_func(context)
            return "".join(self._plain_environment.metered(texts))

    @contextmanager
    def _as_row_error(self, environment: TracingEnvironment, size: int) -> Iterator[None]:
        """`size`: characters that the template is given."""
        more, began = size / 1e6, monotonic()
        try:
            environment.allow(size)
            with at_most(SECONDS + more):
                yield
        except TookTooLong as error:
            raise RowError(f"the chat template ran longer than {SECONDS + more:.3g} s") from error
        except Exception as error:  # a template is a program of somebody else's
            raise RowError(f"the chat template refuses this row: {one_line(error)}") from error
        finally:
            self._add(monotonic() - began, SLOW + more)

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
        _ = ChatTemplate(source).compiled
    except ModelError as error:
        raise BadInput(f"--chat-template {file}, {error}") from error
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read --chat-template {file}: {one_line(error)}") from error
    return source


class _Values:
    """What a template is given: plain JSON values whose strings are numbered."""

    def __init__(self) -> None:
        self.sources: list[Source] = []

    def message(self, index: int, message: Message, calls_as_text: bool) -> dict[str, object]:
        """The message as a template takes it. Reasoning goes by each name that templates read, as
        in transformers from 5.23 on."""
        fields = dict[str, object]()
        for name, value in message.as_dict().items():
            if name == "tool_calls":
                fields[name] = [self._call(index, call, calls_as_text) for call in value]
            else:
                fields[name] = plain(value) if name in LABELS else self.traced(value, index, name)
        thought = next((fields[n] for n in REASONING if fields.get(n) is not None), None)
        if thought is not None:
            fields = {"thinking": thought, **fields, "reasoning_content": thought}
        return fields

    def _call(self, index: int, call: object, arguments_as_text: bool) -> object:
        if not isinstance(call, dict):
            return self.traced(call, index, "tool_calls")
        function = call.get("function")
        if not isinstance(function, dict):
            return plain(call)
        arguments = function.get("arguments")
        if arguments_as_text and arguments is not None and not isinstance(arguments, str):
            text = json.dumps(arguments, ensure_ascii=False, default=str)
            function = {**function, "arguments": text}
        traced = {k: self.traced(v, index, "tool_calls") for k, v in function.items()}
        return {**{str(k): plain(v) for k, v in call.items()}, "function": traced}

    def traced(self, value: object, message: int, field: str) -> object:
        """The value with every string as a source of its own; keys, too, in calls and tools."""
        if isinstance(value, str):
            self.sources.append(Source(message, field, value))
            return Traced(value, (Piece(len(value), len(self.sources) - 1),) if value else ())
        if isinstance(value, Mapping):
            if field in ("tool_calls", "tools"):
                return {
                    self.traced(str(k), message, field): self.traced(v, message, field)
                    for k, v in value.items()
                }
            return {  # a part of a content
                str(k): plain(v) if k == "type" else self.traced(v, message, field)
                for k, v in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.traced(item, message, field) for item in value]
        return plain(value)


def plain(value: object) -> object:
    """A value of plain JSON types: a template must not reach an object's methods."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value)
