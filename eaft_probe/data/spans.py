"""Where each message lies in the rendered conversation.

A chat template is a program, so its output is not taken apart by guessing. Templates with
`{% generation %}` marks say where the assistant's text lies. For the others the conversation is
rendered again with a sentinel in place of contents: what the sentinel stands for in the second
rendering is where the message lies in the first. What cannot be told for certain is a `RowError`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os.path import commonprefix  # of any strings, not only paths
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from eaft_probe.data.formats import Message
from eaft_probe.data.timeout import TookTooLong, at_most
from eaft_probe.errors import ModelError, RowError, one_line

Span = tuple[int, int]  # first character, one past the last

# Private-use characters: no template trims, splits or escapes them.
SENTINEL = "\ue0f0{}\ue0f1"
SENTINELS = re.compile("\ue0f0(\\d+)\ue0f1")
# A template renders a row in a millisecond; loops in loops would never end.
SECONDS, MOST_LATE = 10.0, 3
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with the tokenizer's special tokens. `added` are all tokens added by name."""

    source: str
    special_tokens: dict[str, Any]
    added: tuple[str, ...]
    closer: re.Pattern[str] | None = field(init=False)
    late: list[float] = field(init=False, default_factory=list, compare=False)  # ran too long

    def __post_init__(self) -> None:
        object.__setattr__(self, "closer", self._find_closer())

    @property
    def has_marks(self) -> bool:
        return bool(GENERATION_MARK.search(self.source))

    def render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None, prompt: bool = False
    ) -> str:
        """The conversation as text; `prompt` adds the header of an answer to come."""
        return self._render(messages, tools, add_generation_prompt=prompt)[0]

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, **flags: bool
    ) -> tuple[str, list[Span]]:
        conversation = [m.as_dict() for m in messages]
        try:
            with at_most(SECONDS):
                texts, marks = render_jinja_template(  # type: ignore[misc]
                    conversations=[conversation],
                    tools=list(tools) if tools else None,
                    chat_template=self.source,
                    **flags,
                    **self.special_tokens,
                )
            texts[0].encode()  # '\\ud800' in a template is half a character: no token has it
        except TookTooLong as error:
            self.late.append(SECONDS)
            if len(self.late) >= MOST_LATE:  # else every row of a million would take as long
                raise ModelError(f"the chat template ran longer than {SECONDS:g} s, "
                                 f"{MOST_LATE} times") from error  # fmt: skip
            raise RowError(f"the chat template ran longer than {SECONDS:g} s") from error
        except Exception as error:  # a template is a program of somebody else's
            raise RowError(f"the chat template refuses this row: {one_line(error)}") from error
        return texts[0], [tuple(m) for m in marks[0]] if marks else []

    def locate(
        self, messages: Sequence[Message], turns: Sequence[int], tools: Sequence[Any] | None = None
    ) -> tuple[str, dict[int, list[Span]]]:
        """The rendered text and, for each of `turns`, the spans of its content and end-of-turn.

        A turn that the template leaves out has no spans. Raises `RowError`.
        """
        text, marked = self._marked(messages, tools)
        spans = {t: s for t, s in marked.items() if t in turns}
        todo = [t for t in turns if t not in spans]
        if todo:
            contents = self._all_contents(text, messages, tools)
            for turn in todo:
                simple = contents is not None and not messages[turn].tool_calls
                spans[turn] = (
                    contents[turn]
                    if simple and contents
                    else self._one(text, messages, turn, tools)
                )
        return text, {t: self._closed(text, s) for t, s in spans.items() if s is not None}

    def _marked(
        self, messages: Sequence[Message], tools: Sequence[Any] | None
    ) -> tuple[str, dict[int, Span | None]]:
        """The text, and what generation marks say where each assistant turn has one mark."""
        if not self.has_marks:
            return self.render(messages, tools), {}
        text, marks = self._render(messages, tools, return_assistant_tokens_mask=True)
        assistants = [i for i, m in enumerate(messages) if m.role == "assistant"]
        fits = len(marks) == len(assistants)
        return text, dict(zip(assistants, marks, strict=True)) if fits else {}

    def _all_contents(
        self, text: str, messages: Sequence[Message], tools: Sequence[Any] | None
    ) -> list[Span] | None:
        """Every content's span from one rendering with sentinels; None where it does not add up.

        The text between sentinels is the template's own. If that glue with the contents in
        between, as they are or trimmed, spells the text to the letter, the spans are certain.
        """
        hollow = [replace(m, content=SENTINEL.format(i)) for i, m in enumerate(messages)]
        try:
            glue = SENTINELS.split(self.render(hollow, tools))
        except RowError:
            return None
        if glue[1::2] != [str(i) for i in range(len(messages))]:
            return None
        at, spans = len(glue[0]), list[Span]()
        for message, following in zip(messages, glue[2::2], strict=True):
            forms = (message.content, message.content.strip())
            form = next((f for f in forms if text.startswith(f + following, at)), None)
            if form is None:
                return None
            spans.append((at, at + len(form)))
            at += len(form) + len(following)
        return spans if text.startswith(glue[0]) and at == len(text) else None

    def _one(
        self, text: str, messages: Sequence[Message], turn: int, tools: Sequence[Any] | None
    ) -> Span | None:
        """One message's span: text, reasoning and tool calls. None where it is left out."""
        message = messages[turn]
        hollow = Message(message.role, SENTINEL.format(turn))
        try:
            parts = SENTINELS.split(
                self.render([*messages[:turn], hollow, *messages[turn + 1 :]], tools)
            )
        except RowError:
            parts = []
        if len(parts) == 1 and parts[0] == text:
            return None
        if len(parts) != 3 or not text.endswith(parts[2]):
            return self._by_prefix(text, messages, turn, tools)
        start, end = len(commonprefix([text, parts[0]])), len(text) - len(parts[2])
        if start > end:
            return self._by_prefix(text, messages, turn, tools)
        return _with_opening_tag(text, start, message.content), end

    def _by_prefix(
        self, text: str, messages: Sequence[Message], turn: int, tools: Sequence[Any] | None
    ) -> Span:
        """For templates that check the order of tool calls: what one more message adds."""
        before = self.render(messages[:turn], tools, prompt=messages[turn].role == "assistant")
        after = self.render(messages[: turn + 1], tools)
        if not (text.startswith(after) and after.startswith(before)):
            raise RowError(f"cannot tell where the template puts message {turn}")
        end = len(after.rstrip())
        closers = [c for c in self.added if after.endswith(c, 0, end)]
        return len(before), max(len(before), end - max(map(len, closers), default=0))

    def _closed(self, text: str, span: Span) -> list[Span]:
        """The content and, where one follows, the end-of-turn token."""
        found = self.closer.match(text, span[1]) if self.closer else None
        return [span, found.span(1)] if found else [span]

    def _find_closer(self) -> re.Pattern[str] | None:
        """What stands behind the content of a message that is the last: the end-of-turn token."""
        probe = (Message("user", "x"), Message("assistant", SENTINEL.format(0)))
        found = set[str]()
        for messages in (probe, (replace(probe[1], role="user"),)):
            try:
                tail = SENTINELS.split(self.render(messages))[-1].lstrip()
            except RowError:
                continue
            found |= {max((a for a in self.added if tail.startswith(a)), key=len, default="")}
        tokens = sorted(filter(None, found), key=len, reverse=True)
        return re.compile(rf"\s*({'|'.join(map(re.escape, tokens))})") if tokens else None


def _with_opening_tag(text: str, start: int, content: str) -> int:
    """A template that rewrites `<think>…` writes the tag itself; it is still the content's."""
    tag = re.match(r"\s*(<[^<>\s]+>)", content)
    before = text[:start].rstrip()
    if tag and before.endswith(tag[1]):
        return len(before) - len(tag[1])
    return start
