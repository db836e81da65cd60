"""Example → the prompt of its last answer, and a sampled answer → a row that reads back as it.

The prompt's ids are those that a scan would find before the answer: the conversation is rendered
by the scan's own renderer with a mark for the answer, and what stands before the mark is the
prompt. Where the chat template opens an answer in another way than it shows a finished one (an
empty `<think>` before it, a space), the model is prompted with the opening, as it was trained.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from eaft_probe.data.formats import Example, RowFormat
from eaft_probe.data.formats.columns import KWARGS
from eaft_probe.data.messages import Message
from eaft_probe.data.rendering.render import Renderer
from eaft_probe.data.rendering.rendered import as_array, untrimmed
from eaft_probe.data.rendering.spans import Located
from eaft_probe.errors import RowError

SAME = 2  # see `Prompts._fit`
WORD = "A"
MARK = "\ue0f2answer\ue0f3"  # private-use characters: no template trims, splits or escapes them
# How a written answer reads back: as the sampled ids, as others, or not at all (an empty one).
ReadsBack = Literal["same", "other", "empty"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is to continue."""

    example: Example  # its messages end before the answer
    text: str
    ids: tuple[int, ...]
    lead: str  # what the header opens and a finished answer has in its content: "<think>\n"


class Prompts:
    """Turns examples into prompts, and answers into rows, under one renderer."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer, self.tokenizer = renderer, renderer.tokenizer

    def stops(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return frozenset(self.tokenizer.convert_tokens_to_ids(sorted(self.renderer.closers)))

    def __call__(self, example: Example) -> Prompt:
        """The example up to its last answer. Raises `RowError` where it asks for none."""
        messages = list(example.messages)
        while messages and messages[-1].role == "assistant":
            messages.pop()
        if not any(m.role == "user" for m in messages):
            raise RowError("no prompt: there is no user turn to answer")
        asked = replace(example, messages=tuple(replace(m, trained=False) for m in messages))
        marked = (*asked.messages, Message("assistant", MARK, trained=True))
        shown = self.renderer.located(replace(asked, messages=marked))
        before, mark, _ = shown.text.partition(MARK)
        if not mark:
            raise RowError("the chat template does not show the answer")
        plain = self.renderer.is_plain(asked)
        text, lead = (before, "") if plain else self._header(asked, shown, before)
        return Prompt(asked, text, self._ids(text, plain), lead)

    def _header(self, asked: Example, shown: Located, before: str) -> tuple[str, str]:
        """The text that the model continues, and what of it belongs to the answer's content."""
        tools = None if self.renderer.options.tool_calls == "inline" else asked.tools
        locator = self.renderer.locator(asked)
        closed, header = (
            locator.render(shown.messages[:-1], tools, prompt=p).text for p in (False, True)
        )
        if header == closed:  # a template that knows no opening; spaces are the first word's
            header = before.rstrip(" ")
        return header, header[len(before) :] if header.startswith(before) else ""

    def _ids(self, text: str, plain: bool) -> tuple[int, ...]:
        """The text's ids as they are in front of a word: alone, a last "\\n\\n" is one token to
        many tokenizers, and before an answer two."""
        ids, offsets = self.renderer.encode(text + WORD, plain)
        chars = untrimmed(text + WORD, as_array(offsets))
        first = int((chars[:, 0] >= len(text)).argmax())  # token of the word
        if chars[first, 0] == len(text):
            return tuple(ids[:first])
        ids, offsets = self.renderer.encode(text, plain)  # the word grew together with the text
        added = len(ids) > 1 and offsets[-1][1] < len(text)  # by a tokenizer: the end of text
        return tuple(ids[: len(ids) - added])

    def row(
        self, prompt: Prompt, ids: Sequence[int], stop: int | None
    ) -> tuple[dict[str, Any], ReadsBack]:
        """The prompt with the answer as a row that a scan takes, and how that reads back."""
        text = self._text(prompt, ids)
        forms = dict.fromkeys((prompt.lead + text, text, text.strip()))
        rows = [row_of(prompt.example, form) for form in forms]
        if not text.strip():
            return rows[0], "empty"
        sampled = [*prompt.ids, *ids, *([] if stop is None else [stop])]
        fits = [self._fit(row, sampled, prompt.text + text) for row in rows]
        best = max(fits)
        return rows[fits.index(best)], "same" if best == SAME else "other"

    def _fit(self, row: Mapping[str, object], ids: Sequence[int], text: str) -> int:
        """How well the row, read from its line by a scan, gives back a prompt and its answer: SAME
        ids, at least the text, or neither.

        Behind an answer that was cut the reading has an end-of-turn token that nobody sampled.
        """
        read = RowFormat("messages" if "messages" in row else "prompt-completion")
        try:
            rendered = self.renderer(read(json.loads(json_line(row))))
        except RowError:
            return 0
        same = rendered.ids[: len(ids)].tolist() == ids
        return SAME if same else int(rendered.text.startswith(text))

    def _text(self, prompt: Prompt, ids: Sequence[int]) -> str:
        """Decoded behind the prompt: alone, some tokenizers drop the space before the first."""
        head, whole = self._decoded(prompt.ids), self._decoded([*prompt.ids, *ids])
        if whole.startswith(head):
            return whole[len(head) :]
        return self._decoded(ids)  # broken bytes, which took the prompt's last with them

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )


def row_of(asked: Example, answer: str) -> dict[str, Any]:
    """A prompt with its answer in the shape that is rendered in the same way: plain strings, or
    `messages` in which the answer alone is trained."""
    if asked.plain:
        system = {"system": asked.messages[0].content} if len(asked.messages) > 1 else {}
        return {**system, "prompt": asked.messages[-1].content, "completion": answer}
    more: dict[str, Any] = {"tools": list(asked.tools)} if asked.tools else {}
    if asked.template_arg:
        more[KWARGS] = dict(asked.template_arg)
    context = [
        m.as_dict() | ({"train": False} if m.role == "assistant" else {}) for m in asked.messages
    ]
    return {"messages": [*context, {"role": "assistant", "content": answer}], **more}


def json_line(row: Mapping[str, object]) -> str:
    """A row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"
