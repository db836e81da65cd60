"""Example → token ids, which of them are trained, and where each stands in the text."""

import copy
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import date
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np

from eaft_probe.data.formats import Example
from eaft_probe.data.inline import inline_tool_calls
from eaft_probe.data.messages import REASONING, Message
from eaft_probe.data.rendering.chat_template import ChatTemplate, plain, read_template
from eaft_probe.data.rendering.layout import Span
from eaft_probe.data.rendering.rendered import Rendered, as_array, ends_text, marked_tokens
from eaft_probe.data.rendering.spans import Located, Locator
from eaft_probe.data.rendering.traced import leaves
from eaft_probe.errors import ModelError, RowError, as_model_error
from eaft_probe.settings import TrainedSettings

MOST_LOCATORS = 16  # of templates with the values of rows; each has tried its template out


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """How rows become tokens: the settings of a command, and of a plan, that decide it.

    `train_on`: "assistant" turns, the "last" of them, or "all" messages; a message's own `trained`
    wins. `tool_calls`: through the chat "template", or "inline" as JSON text. `turns`: "together"
    in one rendering, or "each" in one of its own, with the history as the template shows it then.
    `chat_template`: a file that replaces the tokenizer's. `template_arg`: more values for it.
    `today`: the date that the template reads, YYYY-MM-DD; None is this day.
    """

    train_on: Literal["assistant", "last", "all"] = "assistant"
    tool_calls: Literal["template", "inline"] = "template"
    turns: Literal["together", "each"] = "together"
    chat_template: str | None = None
    template_arg: Mapping[str, object] = field(default_factory=dict)
    today: str | None = None

    @classmethod
    def of(cls, settings: TrainedSettings) -> "RenderOptions":
        """Those of a command's settings."""
        return cls(**{f.name: getattr(settings, f.name) for f in fields(cls)})


class Renderer:
    """Turns examples into `Rendered` under one tokenizer. Raises `RowError` for a row it cannot."""

    def __init__(self, tokenizer: Any, options: RenderOptions | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(tokenizer).__name__} gives no character offsets, which are needed to find "
                f"the trained tokens; use a model with a tokenizer.json"
            )
        self.tokenizer, self.options = tokenizer, options or RenderOptions()
        with as_model_error("the tokenizer cannot be used"):
            by_length = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
            self.added = dict.fromkeys(by_length)  # in this order; looked up for each token
            self.specials = re.compile("|".join(map(re.escape, self.added)) or r"(?!)")
            self.templates = chat_templates(tokenizer, self.options.chat_template)
            # Asked for once: each takes as long as 5 tokens of a row.
            self._bos_id, self._eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        if self.templates and "default" not in self.templates:
            raise ModelError(
                f"the tokenizer has no chat template named 'default', only "
                f"{', '.join(self.templates)}; give one with --chat-template"
            )
        self._compiled: dict[str, ChatTemplate] = {}
        self._locators: dict[tuple[str, str], Locator] = {}

    def __call__(self, example: Example) -> Rendered:
        """The example in one rendering, whatever `turns` says."""
        return self._one(self._shaped(example), None)

    def renderings(self, example: Example) -> list[Rendered]:
        """One rendering, or under `turns` "each" one for each trained turn. Raises `RowError` where
        there is none; turns that cannot be rendered are left out where others can."""
        if self.options.turns == "together":
            return [self(example)]
        if example.labelled:
            return [self._one(example, 0)]
        example = self._shaped(example)
        renderings, errors = list[Rendered](), list[RowError]()
        for turn in self._trained_turns(example.messages):
            try:
                renderings.append(self._one(example, turn))
            except RowError as error:
                errors.append(error)
        if not renderings:
            raise errors[0]
        return renderings

    def _shaped(self, example: Example) -> Example:
        if self.options.tool_calls == "inline":
            return inline_tool_calls(example, self._shown_roles)
        return example

    def is_plain(self, example: Example) -> bool:
        """Whether it is rendered without a chat template."""
        return example.plain or not self.templates

    def _one(self, example: Example, only: int | None) -> Rendered:
        if example.labelled:
            rendered = self._labelled(example, *example.labelled, only)
        else:
            rendered = self._tokenized(example, self._located(example, only), only)
        if not rendered.trained[1:].any():  # nothing comes before the first token to predict it
            raise RowError("no trained token")
        return rendered

    def located(self, example: Example) -> Located:
        """The example as text, with what is trained of it. Raises `RowError`."""
        return self._located(self._shaped(example), None)

    def _located(self, example: Example, only: int | None) -> Located:
        turns = self._trained_turns(example.messages) if only is None else [only]
        messages = example.messages if only is None else example.messages[: only + 1]
        if self.is_plain(example):
            return self._plain(replace(example, messages=messages), turns)
        located = self.locator(example).locate(messages, turns, example.tools)
        if not any(located.spans.values()):
            calls = any(messages[t].tool_calls for t in turns)
            hint = "; --tool-calls inline renders tool calls as JSON text" if calls else ""
            raise RowError(f"the chat template shows no text of the trained messages{hint}")
        return located

    def locator(self, example: Example) -> Locator:
        """Of the template that an example is rendered by, with the values that it has for it; some
        models have one for tools."""
        calls = example.tools or any(m.tool_calls for m in example.messages)
        name = "tool_use" if calls and "tool_use" in self.templates else "default"
        values: Any = plain(example.template_arg)
        key = name, json.dumps(values, sort_keys=True)
        if key not in self._locators:
            if len(self._locators) >= MOST_LOCATORS:
                del self._locators[next(iter(self._locators))]  # the oldest
            template = self._template(name).with_values(values)
            self._locators[key] = Locator(template, self.stops, tuple(self.added))
        return self._locators[key]

    def _template(self, name: str) -> ChatTemplate:
        if name not in self._compiled:
            values = {**self.tokenizer.special_tokens_map, **self.options.template_arg}
            today = date.fromisoformat(self.options.today) if self.options.today else date.today()
            template = ChatTemplate(self.templates[name], values, today)
            try:
                _ = template.compiled
            except ModelError as error:
                model = self.tokenizer.name_or_path
                raise ModelError(f"the chat template of {model} is invalid: {error}") from error
            self._compiled[name] = template
        return self._compiled[name]

    @property
    def limits(self) -> str:
        """What the chat template does not show, for people; empty where it shows everything."""
        limits = self.locator(Example("", ())).limits if self.templates else ()
        return f"the chat template does not show {', '.join(limits)}" if limits else ""

    @cached_property
    def closers(self) -> frozenset[str]:
        """The tokens that end an answer: the end of text, and what the templates end turns with."""
        examples = [Example("", ()), Example("", (), tools=[{}])] if self.templates else []
        return self.stops.union(*(self.locator(e).endings for e in examples))

    @cached_property
    def stops(self) -> frozenset[str]:
        """The tokens at which the model's generation stops."""
        ids = {self.tokenizer.eos_token_id, *getattr(self.tokenizer, "stop_token_ids", ())} - {None}
        return frozenset(map(str, self.tokenizer.convert_ids_to_tokens(sorted(ids))))

    def _trained_turns(self, messages: Sequence[Message]) -> list[int]:
        """The turns to train, by their own word or by `train_on`. Raises `RowError` for none."""
        default: Sequence[int] = range(len(messages))
        if self.options.train_on != "all":
            assistants = [i for i in default if messages[i].role == "assistant"]
            default = assistants[-1:] if self.options.train_on == "last" else assistants
        turns = [
            i for i, m in enumerate(messages) if (i in default if m.trained is None else m.trained)
        ]
        if not turns:
            raise RowError("no trained message")
        if not any(messages[i].says_anything for i in turns):
            raise RowError("the answer is empty" if len(turns) == 1 else "the answers are empty")
        return turns

    def _plain(self, example: Example, turns: Sequence[int]) -> Located:
        """Without a template: contents on lines of their own, the end-of-text token after each
        assistant's, unless it ends in one. A prompt and its answer make `prompt⏎completion</s>`."""
        messages = example.messages
        if any(m.tool_calls for m in messages):
            raise RowError(
                "tool calls cannot be shown without a chat template; render them as JSON text "
                "with --tool-calls inline, or give a template with --chat-template"
            )
        end_of_text = self.tokenizer.eos_token or ""
        text, spans = "", dict[int, list[Span]]()
        for turn, message in enumerate(messages):
            start, past = len(text), len(text) + len(message.content)
            closes = message.role == "assistant" or turn == len(messages) - 1
            has_end = bool(end_of_text) and message.content.rstrip().endswith(end_of_text)
            behind = "\n" if not closes else "" if has_end else end_of_text
            text += message.content + behind
            if turn in turns:
                spans[turn] = [(start, past)]
                if closes and not has_end and message.ends:
                    spans[turn].append((past, len(text)))
        return Located(text, messages, spans, _unshown(example))

    def encode(self, text: str, plain: bool) -> tuple[list[int], list[Span]]:
        """The ids of a rendered conversation, or of `plain` text, and their characters."""
        with as_model_error("the tokenizer cannot encode a row"):
            encoded = self._encoder.encode(text, add_special_tokens=plain)
        ids, offsets = encoded.ids, encoded.offsets
        if len(ids) > 1 and ids[-1] == ids[-2] == self._eos_id and not ends_text(offsets[-1], text):
            ids, offsets = ids[:-1], offsets[:-1]  # a tokenizer that adds its own end of text
        if len(ids) > 1 and ids[0] == ids[1] == self._bos_id and not offsets[0][1]:
            ids, offsets = ids[1:], offsets[1:]  # the text brings its own beginning
        return ids, offsets

    @cached_property
    def _encoder(self) -> Any:
        """What `tokenizer(text)` ends up in; going there costs as much as it takes for 40 tokens.
        A copy, which nobody else sets to cut or to pad."""
        with as_model_error("the tokenizer cannot be copied"):  # a component written in Python
            encoder = copy.deepcopy(self.tokenizer.backend_tokenizer)
        encoder.no_truncation()
        encoder.no_padding()
        encoder.encode_special_tokens = bool(getattr(self.tokenizer, "split_special_tokens", False))
        return encoder

    def _tokenized(self, example: Example, located: Located, only: int | None) -> Rendered:
        plain = self.is_plain(example)
        ids, offsets = self.encode(located.text, plain)
        trained, turn = marked_tokens(located.text, offsets, located.spans)
        return Rendered(
            example.key,
            located.text,
            example.messages,
            plain,
            np.asarray(ids, np.int32),
            trained,
            turn,
            as_array(offsets),
            sum(len(self.specials.findall(m.content)) for m in example.messages),
            of_turn=only,
            left_out=located.left_out,
            closed=located.closed,
            not_shown=sum(not s for s in located.spans.values()),
            not_read=example.not_read,
        )

    def _labelled(
        self, example: Example, ids: Sequence[int], labels: Sequence[int], only: int | None
    ) -> Rendered:
        size = len(self.tokenizer)
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            raise RowError(f"token id {wrong} is not in the model's vocabulary of {size:,}")
        texts = [self.token_text(i) for i in ids]
        edges = accumulate(map(len, texts), initial=0)
        return Rendered(
            example.key,
            "".join(texts),
            (),
            True,
            np.asarray(ids, np.int32),
            np.asarray(labels, np.int64) != -100,
            np.zeros(len(ids), np.int16),
            as_array(list(pairwise(edges))),
            0,
            of_turn=only,
        )

    @cached_property
    def _shown_roles(self) -> set[str]:
        """Of "system" and "tool" the roles whose words the template shows."""
        word = "eaft_probe_word"
        question, answer = Message("user", "x"), Message("assistant", "y")
        probes = {
            "system": [Message("system", word), question, answer],
            "tool": [question, answer, Message("tool", word), answer],
        }
        if not self.templates:
            return set(probes)
        roles = set[str]()
        for role, messages in probes.items():
            with suppress(RowError):
                if word in self.locator(Example("", ())).render(messages, None).text:
                    roles.add(role)
        return roles

    # --- tokens as text ---

    def token_text(self, token_id: int) -> str:
        """The token decoded alone: its leading space kept, bytes that are no character as \\xNN."""
        piece = self.tokenizer.convert_ids_to_tokens(int(token_id))
        if piece is None:
            return ""
        if piece in self.added:
            return str(piece)
        if self._byte_level:
            data = bytes(self._byte_level.get(c, ord("?")) for c in piece)
            return data.decode("utf-8", errors="backslashreplace")
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
        if byte:
            return bytes.fromhex(byte[1]).decode("utf-8", errors="backslashreplace")
        return str(piece).replace("▁", " ")

    @cached_property
    def _byte_level(self) -> dict[str, int]:
        """The character that stands for each byte in a byte-level vocabulary; {} in others."""
        if "ByteLevel" not in str(self.tokenizer.backend_tokenizer.decoder):
            return {}
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [b for b in range(256) if b not in shown]
        return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


def chat_templates(tokenizer: Any, file: str | None) -> dict[str, str]:
    """The chat templates by name: `file`'s, or the tokenizer's. Raises `BadInput` for a file that
    is none."""
    if file is not None:
        return {"default": read_template(file)}
    source = tokenizer.chat_template or {}
    templates = source if isinstance(source, dict) else {"default": source}
    return {name: str(text) for name, text in templates.items()}


def _unshown(example: Example) -> Counter[str]:
    """What plain text has no place for, in characters."""
    characters = Counter[str]({"tools": sum(map(len, leaves(example.tools)))})
    for message in example.messages:
        for name in REASONING:
            characters[f"{message.role}.{name}"] += sum(map(len, leaves(message.extra.get(name))))
    return +characters
