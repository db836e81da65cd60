"""A row's messages in one shape, whichever of the field's spellings they came in.

The shape is the one that chat templates read: `tool_calls` as a list of objects with a `function`,
whose `arguments` are an object; reasoning in a field of its own; roles by their usual names.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from eaft_probe.errors import RowError

Value = TypeVar("Value")

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "function_call": "assistant",  # ShareGPT: a call written out as the assistant's text
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "ipython": "ipython",
}
TRAIN_FIELDS = ("train", "weight", "loss")
THINKING_PARTS = ("thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `trained` is the row's own word on it, None where it has none."""

    role: str
    content: str
    trained: bool | None = None
    tool_calls: Sequence[Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # what templates may read: name, …
    ends: bool = True  # False: cut short, so that the end-of-turn behind it is nobody's word

    @property
    def says_anything(self) -> bool:
        """Whether it holds a word, a thought or a call."""
        thoughts = (v for v in self.extra.values() if isinstance(v, str))
        return bool(self.tool_calls) or any(t.strip() for t in (self.content, *thoughts))

    def as_dict(self) -> dict[str, Any]:
        """The message as a chat template takes it."""
        calls = {"tool_calls": list(self.tool_calls)} if self.tool_calls else {}
        return {"role": self.role, "content": self.content, **calls, **self.extra}


def read_messages(value: Any, names: Mapping[str, str]) -> tuple[Message, ...]:
    """The messages of a row; a list, or one as JSON text. `names`: the keys of role and content.

    Raises `RowError`.
    """
    value = from_json(value, "messages")
    if not isinstance(value, list):
        raise RowError(f"messages should be a list, found {type(value).__name__}")
    if not value:
        raise RowError("messages is empty")
    return tuple(_message(m, names, i) for i, m in enumerate(value))


def read_tools(value: Any) -> Sequence[Any] | None:
    """The tools of a row: a list of objects, all or each as JSON text. Raises `RowError`."""
    tools = from_json(value, "tools")
    if tools and not isinstance(tools, list):
        raise RowError(f"tools should be a list, found {type(tools).__name__}")
    return encodable([from_json(t, "tools") for t in tools or ()], "tools") or None


def _message(value: Any, names: Mapping[str, str], at: int) -> Message:
    what = f"message {at}"
    if not isinstance(value, dict):
        raise RowError(f"{what} should be an object, found {type(value).__name__}")
    role_key = names.get("role") or ("role" if "role" in value else "from")
    content_key = names.get("content") or ("content" if "content" in value else "value")
    role = ROLES.get(str(value.get(role_key)).lower())
    if role is None:
        raise RowError(f"{what} has an unknown role {value.get(role_key)!r}")
    calls = _calls(value, what)
    content = value.get(content_key)
    used = {role_key, content_key, "tool_calls", "function_call", *TRAIN_FIELDS}
    extra = {k: v for k, v in value.items() if k not in used and v is not None}
    if content is None and not (calls or _thinks(extra)):
        raise RowError(f"{what} has no content")
    words, thought = ("", "") if content is None else _parts(content, f"{what}: content")
    if thought:
        extra = {"reasoning_content": thought, **extra}
    return Message(role, words, _own_word(value, what), calls, encodable(extra, what))


def _thinks(extra: Mapping[str, Any]) -> bool:
    return any(extra.get(n) for n in ("reasoning_content", "reasoning", "thinking"))


# --- contents ---


def text(value: Any, what: str) -> str:
    """A string, or the joined text parts of one. Raises `RowError` for anything else."""
    words, thought = _parts(value, what)
    if thought:
        raise RowError(f"{what} has a part of type 'thinking'; only a message can have one")
    return words


def _parts(value: Any, what: str) -> tuple[str, str]:
    """What a content says, and what it thinks."""
    if isinstance(value, str):
        return encodable(value, what), ""
    if not isinstance(value, list):
        raise RowError(f"{what} should be text, found {type(value).__name__}")
    words, thoughts = list[str](), list[str]()
    for part in value:
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        if kind in THINKING_PARTS:
            thoughts.append(_parts(part.get(kind, part.get("text")), what)[0])
        elif kind == "text":
            words.append(_parts(part.get("text"), what)[0])
        else:
            raise RowError(f"{what} has a part of type {kind!r}; only text can be scored")
    return "".join(words), "".join(thoughts)


def encodable(value: Value, what: str) -> Value:
    """The value as it is. Raises `RowError` for half a surrogate pair, which nothing can write."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{what} holds invalid Unicode at character {error.start}") from error
    return value


def from_json(value: Any, what: str) -> Any:
    """The value that a text stands for; anything else as it is. Raises `RowError`."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value.strip() or "null")
    except (ValueError, RecursionError) as error:
        raise RowError(f"{what} is not JSON: {error}") from error


def _own_word(value: Mapping[str, Any], what: str) -> bool | None:
    """The message's own `train`, `weight` or `loss` field."""
    for name in TRAIN_FIELDS:
        word = value.get(name)
        if word is None:
            continue
        if word not in (0, 1, True, False):
            raise RowError(
                f"{what}: {name} should be true, false, 0 or 1, found {word!r}; a "
                f"message is trained whole or not at all"
            )
        return bool(word)
    return None


# --- tool calls ---


def _calls(value: Mapping[str, Any], what: str) -> list[Any] | None:
    """The calls in the shape {"type": "function", "function": {"name", "arguments"}, …}."""
    calls = from_json(value.get("tool_calls") or None, f"{what}: tool_calls")
    legacy = from_json(value.get("function_call"), f"{what}: function_call") or None
    if calls is None and legacy is not None:
        calls = [legacy]
    if calls is None:
        return None
    if not isinstance(calls, list):
        raise RowError(f"{what}: tool_calls should be a list, found {type(calls).__name__}")
    return encodable([_call(c, what) for c in calls], f"{what}: tool_calls") or None


def _call(value: Any, what: str) -> dict[str, Any]:
    call = from_json(value, f"{what}: a tool call")
    if not isinstance(call, dict):
        raise RowError(f"{what}: a tool call should be an object, found {type(call).__name__}")
    function = from_json(call.get("function"), f"{what}: a tool call's function")
    outer = {k: v for k, v in call.items() if k not in ("function", "name", "arguments")}
    if not isinstance(function, dict):  # a function without the object around it
        function = {k: call[k] for k in ("name", "arguments") if k in call}
    if not isinstance(function.get("name"), str):
        raise RowError(f"{what}: a tool call without the name of a function")
    return {"type": "function", **outer, "function": _with_object(function)}


def _with_object(function: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI writes arguments as JSON text; templates take the object. Other text stays."""
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments.strip() or "{}")
        except (ValueError, RecursionError):
            return dict(function)
        return {**function, "arguments": read} if isinstance(read, dict) else dict(function)
    return {**function, "arguments": {} if arguments is None else arguments}
