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
KINDS = {str: "text", list: "a list", dict: "an object", int: "a number", float: "a number"}

# A role's names, in lower case and with underscores.
ROLES = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("user", "human", "prompter", "question", "instruction", "input"), "user"),
    **dict.fromkeys(
        (
            *("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "ai", "bot"),
            *("chat_bot", "chatbot", "answer", "response", "output"),
            *("function_call", "tool_call"),  # ShareGPT: a call written out as text
        ),
        "assistant",
    ),
    **dict.fromkeys(
        ("tool", "function", "observation", "function_response", "tool_response"), "tool"
    ),
    "ipython": "ipython",
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "sender"), ("content", "value", "text", "parts")
# A turn and its answer in one item.
PAIRS = (("input", "output"), ("question", "answer"), ("prompt", "response"))
TRAIN_FIELDS = ("train", "weight", "loss", "loss_weight", "loss_scale")
REASONING = ("reasoning_content", "thinking", "reasoning")  # the fields that hold a thought


@dataclass(frozen=True, slots=True)
class Spelling:
    """How somebody's messages are spelt: the keys of role and content, where they are not the
    usual ones, and names of roles that come before ROLES."""

    role: str | None = None
    content: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)

    def read(self, role: object) -> str | None:
        """The role by its usual name."""
        name = str(role)
        plain = name if name in ROLES else name.strip().lower().replace(" ", "_").replace("-", "_")
        return self.roles.get(name) or self.roles.get(plain) or ROLES.get(plain)


USUAL = Spelling()


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `trained`: what the row itself says of it, None where it says nothing."""

    role: str
    content: str
    trained: bool | None = None
    tool_calls: Sequence[Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # what templates may read: name, …
    ends: bool = True  # False: cut short, so that nobody wrote the end-of-turn behind it

    @property
    def says_anything(self) -> bool:
        """Whether it holds a word, a thought or a call."""
        thoughts = (v for v in self.extra.values() if isinstance(v, str))
        return bool(self.tool_calls) or any(t.strip() for t in (self.content, *thoughts))

    def as_dict(self) -> dict[str, Any]:
        """The message as a chat template takes it."""
        calls = {"tool_calls": list(self.tool_calls)} if self.tool_calls else {}
        return {"role": self.role, "content": self.content, **calls, **self.extra}


def read_messages(
    value: object, spelling: Spelling = USUAL, name: str = "messages"
) -> tuple[Message, ...]:
    """The messages of a row's column `name`; a list, or one as JSON text. Raises `RowError`."""
    items = checked(from_json(value, name), list, name)
    if not items:
        raise RowError(f"{name} is empty")
    return tuple(_message(m, spelling, f"message {i}") for i, m in enumerate(_turns(items)))


def _turns(items: list[object]) -> list[object]:
    """One item a message: of texts that take turns, of a turn and its answer in one item, and of
    Arrow's maps, which are lists of (key, value)."""
    if all(isinstance(item, dict) and ("role" in item or "from" in item) for item in items):
        return items
    if len(items) > 1 and all(isinstance(item, str) for item in items):
        return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(items)]
    return [turn for item in items for turn in _item_turns(item)]


def _item_turns(item: object) -> list[object]:
    if isinstance(item, list) and item and all(isinstance(pair, tuple) for pair in item):
        return [{key: value for key, value in item if value is not None}]
    if isinstance(item, list | tuple) and [type(t) for t in item] == [str, str]:
        return _turns(list(item))
    if isinstance(item, dict) and not any(key in item for key in ROLE_KEYS):
        for pair in PAIRS:
            if all(key in item for key in pair):
                return _pair_turns(item, *pair)
    return [item]


def _pair_turns(item: Mapping[str, object], asked: str, answered: str) -> list[object]:
    """XTuner's system prompt stands before its turn, a thought belongs to the answer."""
    kept = {k: item[k] for k in (*REASONING, *TRAIN_FIELDS) if item.get(k) not in (None, "")}
    for name, value in item.items():
        known = name in kept or name in (asked, answered, "system", "id")
        if isinstance(value, str) and value.strip() and not known:
            raise RowError(f"a turn has a text {name!r} beside {asked!r} and {answered!r}")
    system = item.get("system")
    return [
        *([{"role": "system", "content": system}] if system else ()),
        {"role": "user", "content": item[asked]},
        {"role": "assistant", "content": item[answered], **kept},
    ]


def read_tools(value: object) -> Sequence[object] | None:
    """The tools of a row: a list of objects, all or each as JSON text. Raises `RowError`."""
    if not value:
        return None
    tools = checked(from_json(value, "tools") or [], list, "tools")
    return encodable([from_json(t, "tools") for t in tools], "tools") or None


def _message(value: object, spelling: Spelling, what: str) -> Message:
    value = checked(value, dict, what)
    role_key = spelling.role or _key(value, ROLE_KEYS)
    content_key = spelling.content or _key(value, CONTENT_KEYS)
    role = _role(value.get(role_key), spelling, what)
    calls = read_calls(value, what)
    content = value.get(content_key)
    used = {role_key, content_key, "tool_calls", "function_call", *TRAIN_FIELDS}
    extra = {k: v for k, v in value.items() if k not in used and v is not None}
    if content is None and not (calls or any(extra.get(n) for n in REASONING)):
        raise RowError(f"{what} has no content")
    words, thought = ("", "") if content is None else _parts(content, f"{what}: content")
    if thought:
        extra = {"reasoning_content": thought, **extra}
    return Message(role, words, _trained(value, what), calls, encodable(extra, what))


def _key(value: Mapping[str, object], keys: Sequence[str]) -> str:
    """The first of the keys that the message has."""
    for key in keys:
        if key in value:
            return key
    return keys[0]


def _role(name: object, spelling: Spelling, what: str) -> str:
    role = spelling.read(name)
    if role is not None:
        return role
    if name is None:
        raise RowError(f"{what} has no role")
    named = isinstance(name, str) and name.isprintable()
    hint = f"; say what it is, for example --roles {name}=assistant" if named else ""
    raise RowError(f"{what} has an unknown role {name!r}{hint}")


def checked(value: object, kind: type[Value], what: str) -> Value:
    """The value, where it is of that kind. Raises `RowError`."""
    if isinstance(value, kind):
        return value
    if value is None:
        raise RowError(f"{what} is empty")
    found = KINDS.get(type(value), type(value).__name__)
    raise RowError(f"{what} should be {KINDS[kind]}, found {found}")


# --- contents ---


def text(value: object, what: str) -> str:
    """A string, or the joined text parts of one. Raises `RowError` for anything else."""
    words, thought = _parts(value, what)
    if thought:
        raise RowError(f"{what} has a part of type 'thinking'; only a message can have one")
    return words


def _parts(value: object, what: str) -> tuple[str, str]:
    """The words of a content, and its thoughts."""
    if isinstance(value, bytes):  # a table's column of bytes
        value = _decoded(value, what)
    if not isinstance(value, list):
        return encodable(checked(value, str, what), what), ""
    words, thoughts = list[str](), list[str]()
    for part in value:
        kind = _kind(part)
        if kind in ("thinking", "reasoning"):
            said = part.get(kind, part.get("text", part.get("value")))
            thoughts.append(_parts(said, what)[0])
        elif kind == "text":
            words.append(_parts(part.get("text", part.get("value")), what)[0])
        else:
            raise RowError(f"{what} has a part of type {kind!r}; only text can be scored")
    return "".join(words), "".join(thoughts)


def _decoded(value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RowError(f"{what} holds invalid UTF-8 at byte {error.start}") from error


def _kind(part: object) -> str:
    """What a part of a content is: by its `type`, or as Gemini writes it by its only key."""
    if not isinstance(part, dict):
        return type(part).__name__
    return str(part.get("type") or ("text" if "text" in part or not part else next(iter(part))))


def encodable(value: Value, what: str) -> Value:
    """The value as it is. Raises `RowError` for half a surrogate pair, which no file can hold."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{what} holds invalid Unicode at character {error.start}") from error
    return value


def from_json(value: object, what: str) -> object:
    """The value that a text stands for; anything else as it is. Raises `RowError`."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value.strip() or "null")
    except (ValueError, RecursionError) as error:
        raise RowError(f"{what} is not JSON: {error}") from error


def _trained(value: Mapping[str, object], what: str) -> bool | None:
    """The message's own `train`, `weight` or `loss` field."""
    name = next((n for n in TRAIN_FIELDS if value.get(n) is not None), "")
    trained = value.get(name)
    if trained not in (None, 0, 1):
        raise RowError(
            f"{what}: {name} should be true, false, 0 or 1, found {trained!r}; a message is "
            f"trained whole or not at all"
        )
    return None if trained is None else bool(trained)


# --- tool calls ---


def read_calls(value: Mapping[str, object], what: str) -> list[dict[str, object]] | None:
    """The calls in the shape {"type": "function", "function": {"name", "arguments"}, …}."""
    calls = from_json(value.get("tool_calls") or None, f"{what}: tool_calls")
    legacy = from_json(value.get("function_call"), f"{what}: function_call")
    if calls is None:
        calls = [legacy] if legacy else []
    listed = checked(calls, list, f"{what}: tool_calls")
    return encodable([_call(c, what) for c in listed], f"{what}: tool_calls") or None


def _call(value: object, what: str) -> dict[str, object]:
    call = checked(from_json(value, f"{what}: a tool call"), dict, f"{what}: a tool call")
    function = from_json(call.get("function"), f"{what}: a tool call's function")
    outer = {k: v for k, v in call.items() if k not in ("function", "name", "arguments")}
    if not isinstance(function, dict):  # a function without the object around it
        function = {k: call[k] for k in ("name", "arguments") if k in call}
    if not isinstance(function.get("name"), str):
        raise RowError(f"{what}: a tool call does not name its function")
    return {"type": "function", **outer, "function": _with_object(function)}


def _with_object(function: Mapping[str, object]) -> dict[str, object]:
    """OpenAI writes arguments as JSON text; templates take the object. Other text stays."""
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments.strip() or "{}")
        except (ValueError, RecursionError):
            return dict(function)
        return {**function, "arguments": read} if isinstance(read, dict) else dict(function)
    return {**function, "arguments": {} if arguments is None else arguments}
