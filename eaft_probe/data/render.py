"""Example → token ids, which of them are trained, and where each stands in the text."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eaft_probe.data.formats import Example, Message
from eaft_probe.data.spans import ChatTemplate, Span
from eaft_probe.errors import BadInput, ModelError, RowError

TrainOn = Literal["assistant", "last", "all"]
ToolCalls = Literal["template", "inline"]
PROBE_CALL = {"name": "eaft_probe_call", "arguments": {"x": 1}}


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example as tokens. T positions."""

    key: str
    text: str
    messages: tuple[Message, ...]
    plain: bool
    ids: NDArray[np.int32]  # (T,)
    trained: NDArray[np.bool_]  # (T,)
    turn: NDArray[np.int16]  # (T,) index of the message; 0 outside trained spans
    chars: NDArray[np.int32]  # (T, 2) first character in `text` and one past the last
    special_in_content: int  # how often a content spells a special token

    def cut(self, length: int) -> "Rendered":
        """The first `length` tokens."""
        parts = {n: getattr(self, n)[:length] for n in ("ids", "trained", "turn", "chars")}
        return replace(self, **parts)


class Renderer:
    """Turns examples into `Rendered` under one tokenizer. Raises `RowError` for a row it cannot.

    `train_on`: "assistant" turns, the "last" of them, or "all" messages; a message's own `trained`
    wins. `tool_calls`: through the chat "template", or "inline" as JSON text.
    """

    def __init__(
        self, tokenizer: Any, train_on: TrainOn = "assistant", tool_calls: ToolCalls = "template"
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(tokenizer).__name__} gives no character offsets, which finding the trained "
                f"tokens needs; use a model with a tokenizer.json"
            )
        self.tokenizer = tokenizer
        self.train_on, self.tool_calls = train_on, tool_calls
        added = tuple(sorted(tokenizer.get_added_vocab(), key=len, reverse=True))
        self.specials = re.compile("|".join(map(re.escape, added)) or r"(?!)")
        source = _chat_template(tokenizer)
        self.template = (
            ChatTemplate(source, dict(tokenizer.special_tokens_map), added) if source else None
        )

    def __call__(self, example: Example) -> Rendered:
        if example.labelled:
            return self._labelled(example, *example.labelled)
        if self.tool_calls == "inline":
            example = _inlined(example, keep_tool_role=self._shows_tool_role)
        elif example.tools or any(m.tool_calls for m in example.messages):
            self._require_tool_calls()
        turns = self._trained_turns(example.messages)
        if self.template is None or example.plain:
            text, spans = self._plain(example.messages, turns)
        else:
            text, spans = self.template.locate(example.messages, turns, example.tools)
        spans = {t: s if example.messages[t].ends else self._unended(text, s)
                 for t, s in spans.items()}  # fmt: skip
        return self._tokenized(example, text, spans)

    def _unended(self, text: str, spans: Sequence[Span]) -> list[Span]:
        """The content's span alone; a generation mark may hold the end-of-turn, too."""
        start, end = spans[0]
        closer = self.template.closer if self.template else None
        found = closer.finditer(text, start, end) if closer else ()
        return [(start, next((m.start(1) for m in found if m.end() == end), end))]

    def _trained_turns(self, messages: Sequence[Message]) -> list[int]:
        """The turns to train, by their own word or by `train_on`. Raises `RowError` for none."""
        assistants = [i for i, m in enumerate(messages) if m.role == "assistant"]
        default = {
            "assistant": assistants,
            "last": assistants[-1:],
            "all": list(range(len(messages))),
        }[self.train_on]
        turns = [
            i for i, m in enumerate(messages) if (i in default if m.trained is None else m.trained)
        ]
        if not turns:
            raise RowError("no trained message")
        if not any(messages[i].content.strip() or messages[i].tool_calls for i in turns):
            raise RowError("the trained messages are empty")
        return turns

    def _plain(
        self, messages: Sequence[Message], turns: Sequence[int]
    ) -> tuple[str, dict[int, list[Span]]]:
        """Without a template: contents on lines of their own, the end-of-text token after each
        assistant's. One prompt and its answer make `prompt⏎completion</s>`."""
        end_of_text = self.tokenizer.eos_token or ""
        text, spans = "", dict[int, list[Span]]()
        for turn, message in enumerate(messages):
            start, last = len(text), turn == len(messages) - 1
            text += message.content
            closes = message.role == "assistant" or last
            mine = [(start, len(text))]
            if closes:
                mine.append((len(text), len(text) + len(end_of_text)))
                text += end_of_text
            elif not last:
                text += "\n"
            if turn in turns:
                spans[turn] = mine
        return text, spans

    def encode(self, text: str, plain: bool) -> tuple[list[int], NDArray[np.int32]]:
        """The ids of a rendered conversation, or of `plain` text, and their (T, 2) characters."""
        encoded = self.tokenizer(
            text,
            add_special_tokens=self.template is None or plain,
            return_offsets_mapping=True,
            verbose=False,  # its warning about the context: longer rows are cut or split here
        )
        ids, chars = encoded["input_ids"], _untrimmed(text, encoded["offset_mapping"])
        if (
            len(ids) > 1
            and ids[-1] == ids[-2] == self.tokenizer.eos_token_id
            and not _ends(chars[-1], text)
        ):
            ids, chars = ids[:-1], chars[:-1]  # a tokenizer that adds its own end of text
        return ids, chars

    def _tokenized(
        self, example: Example, text: str, spans: Mapping[int, Sequence[Span]]
    ) -> Rendered:
        ids, chars = self.encode(text, example.plain)
        trained, turn = _marked(chars, spans)
        spelled = sum(len(self.specials.findall(m.content)) for m in example.messages)
        return _checked(
            Rendered(
                example.key,
                text,
                example.messages,
                self.template is None or example.plain,
                np.asarray(ids, np.int32),
                trained,
                turn,
                chars,
                spelled,
            )
        )

    def _labelled(self, example: Example, ids: Sequence[int], labels: Sequence[int]) -> Rendered:
        size = len(self.tokenizer)
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            raise RowError(f"token id {wrong} is not in the vocabulary of {size}")
        pieces = [self.token_text(i) for i in ids]
        ends = np.cumsum([len(p) for p in pieces], dtype=np.int32)
        chars = np.stack([ends - [len(p) for p in pieces], ends], axis=1).astype(np.int32)
        trained = np.asarray(labels, np.int64) != -100
        turn = np.zeros(len(ids), np.int16)
        arrays = (np.asarray(ids, np.int32), trained, turn, chars)
        return _checked(Rendered(example.key, "".join(pieces), (), True, *arrays, 0))

    # --- tool calls ---

    def _require_tool_calls(self) -> None:
        if self._shows_tool_calls:
            return
        raise BadInput(
            f"the chat template of {self.tokenizer.name_or_path} cannot show tool calls; "
            f"--tool-calls inline renders them as JSON text"
        )

    @cached_property
    def _shows_tool_calls(self) -> bool:
        call = {"id": "call00000", "type": "function", "function": PROBE_CALL}
        return self._shows(Message("assistant", "", tool_calls=[call]), PROBE_CALL["name"])

    @cached_property
    def _shows_tool_role(self) -> bool:
        return self._shows(Message("tool", "eaft_probe_result"), "eaft_probe_result")

    def _shows(self, message: Message, expected: Any) -> bool:
        if self.template is None:
            return message.role == "tool"
        try:
            return expected in self.template.render([Message("user", "x"), message])
        except RowError:
            return False

    # --- tokens as text ---

    def token_text(self, token_id: int) -> str:
        """The token decoded alone: its leading space kept, bytes that are no character as \\xNN."""
        piece = self.tokenizer.convert_ids_to_tokens(int(token_id))
        if piece is None:
            return ""
        if piece in self._added:
            return str(piece)
        if self._byte_level:
            data = bytes(self._byte_level.get(c, ord("?")) for c in piece)
            return data.decode("utf-8", errors="backslashreplace")
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
        if byte:
            return bytes.fromhex(byte[1]).decode("utf-8", errors="backslashreplace")
        return str(piece).replace("▁", " ")

    @cached_property
    def _added(self) -> frozenset[str]:
        return frozenset(self.tokenizer.get_added_vocab())

    @cached_property
    def _byte_level(self) -> dict[str, int]:
        """The character that stands for each byte in a byte-level vocabulary; {} in others."""
        if "ByteLevel" not in str(self.tokenizer.backend_tokenizer.decoder):
            return {}
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [b for b in range(256) if b not in shown]
        table = {chr(b): b for b in shown}
        return table | {chr(256 + i): b for i, b in enumerate(hidden)}


def _chat_template(tokenizer: Any) -> str | None:
    """The chat template; of several by name the default one. Raises `ModelError` for none such."""
    source = tokenizer.chat_template
    if not isinstance(source, dict):
        return source or None
    if "default" not in source:
        raise ModelError(f"no chat template named 'default', only {', '.join(source)}")
    return str(source["default"])


def _ends(chars: NDArray[np.int32], text: str) -> bool:
    """Whether the last token really is the end of the text, not one that the tokenizer added."""
    return bool(chars[1] == len(text) and chars[1] > chars[0])


def _untrimmed(text: str, offsets: Sequence[Span]) -> NDArray[np.int32]:
    """(T, 2) offsets in which a token owns the white space before it, trimmed or not."""
    chars = np.asarray(offsets, np.int32).reshape(-1, 2)
    for at in np.flatnonzero(chars[1:, 0] > chars[:-1, 1]) + 1:
        end, start = chars[at - 1, 1], chars[at, 0]
        if text[end:start].isspace():
            chars[at, 0] = end
    return chars


def _marked(
    chars: NDArray[np.int32], spans: Mapping[int, Sequence[Span]]
) -> tuple[NDArray[np.bool_], NDArray[np.int16]]:
    """A token belongs to the span in which its first character lies; one without text to none."""
    trained = np.zeros(len(chars), np.bool_)
    turns = np.zeros(len(chars), np.int16)
    real = chars[:, 1] > chars[:, 0]
    for turn, pieces in spans.items():
        for start, end in pieces:
            inside = real & (chars[:, 0] >= start) & (chars[:, 0] < end)
            trained |= inside
            turns[inside] = turn
    return trained, turns


def _checked(rendered: Rendered) -> Rendered:
    """The first token has no predecessor to predict it, so it alone is nothing to train."""
    if not rendered.trained[1:].any():
        raise RowError("no trained token")
    return rendered


def _inlined(example: Example, keep_tool_role: bool) -> Example:
    """Tool calls and definitions as JSON text; tool results become the user's where need be."""
    messages = [_inlined_message(m, keep_tool_role) for m in example.messages]
    if example.tools:
        listing = "\n".join(json.dumps(t, ensure_ascii=False) for t in example.tools)
        if messages and messages[0].role == "system":
            listing = f"{messages.pop(0).content}\n{listing}"
        messages.insert(0, Message("system", listing))
    return replace(example, messages=tuple(messages), tools=None)


def _inlined_message(message: Message, keep_tool_role: bool) -> Message:
    calls = [
        json.dumps(c.get("function", c) if isinstance(c, dict) else c, ensure_ascii=False)
        for c in message.tool_calls or ()
    ]
    content = "\n".join([*([message.content] if message.content else []), *calls])
    role = "user" if message.role == "tool" and not keep_tool_role else message.role
    return replace(message, role=role, content=content, tool_calls=None)
