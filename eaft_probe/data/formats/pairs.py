"""A question and its answer, each in a column, with the columns that belong to the prompt."""

from collections.abc import Iterator, Sequence
from string import ascii_uppercase

from eaft_probe.data.formats.columns import is_empty, parsed_structure
from eaft_probe.data.formats.conversations import as_context, require_target, tools_of
from eaft_probe.data.formats.format import Example, Row
from eaft_probe.data.messages import (
    ROLE_KEYS,
    Message,
    Spelling,
    encodable,
    read_calls,
    read_messages,
    text,
)
from eaft_probe.errors import RowError

FOLLOWING = ("input", "query", "context")  # each after a blank line behind the question

Choices = Sequence[tuple[str, str]]  # label, text


def pair(row: Row, spelling: Spelling, question: str, answer: str) -> Example:
    """The columns `question` and `answer` as turns of a conversation."""
    require_target(row)
    choices, tools = _choices(row.get("choices")), _tools(row)
    history = row.get("history")
    if is_conversation(row[question]):
        asked = as_context(read_messages(row[question], spelling, question))
    else:
        asked = (Message("user", _question(row, question, answer, choices)),)
    messages = (
        *_system(row),
        *(() if is_empty(history) else read_messages(history, spelling, "history")),
        *asked,
        _answer(row, answer, choices, bool(tools)),
    )
    more = tuple(c for c in (answer, "thinking") if _has_more(row.get(c)))
    return Example("", messages, tools=tools, not_read=more)


def is_conversation(value: object) -> bool:
    return isinstance(value, list) and any(
        isinstance(item, dict) and any(key in item for key in ROLE_KEYS) for item in value
    )


def _question(row: Row, question: str, answer: str, choices: Choices) -> str:
    """What is asked: the question, what follows it, and the choices."""
    columns = [c for c in FOLLOWING if row.get(c) and c not in (question, answer)]
    given = row.get("choices")
    asked = [
        _column(row, question),
        *(passage for c in columns for passage in _passages(row[c], c)),
        "\n".join(f"{label}. {choice}" for label, choice in choices)
        or (given if isinstance(given, str) else ""),
    ]
    return encodable("\n\n".join(filter(None, asked)), "the question")


def plain_pair(row: Row, prompt: str, completion: str) -> Example:
    """Both as text without the chat template."""
    messages = (Message("user", _column(row, prompt)), _answer(row, completion, (), False))
    return Example("", (*_system(row), *messages), plain=True)


def _column(row: Row, name: str) -> str:
    return text(row[name], f"the {name}")


def _system(row: Row) -> Iterator[Message]:
    if row.get("system"):
        yield Message("system", text(row["system"], "the system prompt"))


def _tools(row: Row) -> Sequence[object] | None:
    """The tools; None for a column of that name that is about others."""
    try:
        return tools_of(row)
    except RowError:
        return None


def _passages(value: object, name: str) -> list[str]:
    """The texts of a column that follows the question; none of a structure."""
    if isinstance(value, dict):  # PubMedQA
        return _passages(value["contexts"], name) if "contexts" in value else []
    if isinstance(value, list) and not all(isinstance(v, str) for v in value):
        return []
    return [text(v, f"the {name}") for v in (value if isinstance(value, list) else [value])]


# --- choices ---


def _choices(value: object) -> Choices:
    """The choices with their labels; none where the value is no list of them."""
    if isinstance(value, str):
        value = parsed_structure(value)
    labels: Sequence[object] = ascii_uppercase
    if isinstance(value, dict):
        labels, value = _labelled_choices(value)
    elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        labels = [v.get("key", v.get("label")) for v in value]
        value = [v.get("value", v.get("text")) for v in value]
    if not isinstance(value, list) or len(value) > len(labels):
        return ()
    pairs = list(zip(labels, value, strict=False))
    if not all(isinstance(a, str) and isinstance(b, str | int | float) for a, b in pairs):
        return ()
    return [(str(label), str(choice)) for label, choice in pairs]


def _labelled_choices(value: dict[str, object]) -> tuple[Sequence[object], object]:
    """{"text": […], "label": […]} as ARC has it, or a choice by each label."""
    texts, labels = value.get("text"), value.get("label", list(ascii_uppercase))
    if isinstance(texts, list) and isinstance(labels, list):
        return labels, texts
    return list(value), list(value.values())


# --- answers ---


def _answer(row: Row, name: str, choices: Choices, has_tools: bool) -> Message:
    """The answer's message: text, the first of several, the letter of a choice that it counts, or
    tool calls."""
    value, thought = row[name], _first(row.get("thinking"))
    if type(value) is int and choices:
        if not 0 <= value < len(choices):
            raise RowError(f"the {name} is {value}, but there are {len(choices)} choices from 0")
        value = choices[value][0]
    calls = _tool_calls(value, name) if has_tools else None
    words = "" if calls else text(_first(value), f"the {name}")
    extra = {"reasoning_content": text(thought, "thinking")} if thought else {}
    return Message("assistant", words, tool_calls=calls, extra=extra)


def _texts(value: object) -> list[object] | None:
    """Several answers: a list of texts, also in SQuAD's {"text": […]}."""
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value = value["text"]
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return value
    return None


def _first(value: object) -> object:
    texts = _texts(value)
    return value if texts is None else next(iter(texts), None)


def _has_more(value: object) -> bool:
    return len(set(_texts(value) or ())) > 1


def _tool_calls(value: object, name: str) -> list[dict[str, object]] | None:
    """xLAM's answers: a list of calls, or one as JSON text. None for text."""
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        return None
    if isinstance(value, list) and not all(isinstance(v, dict) for v in value):
        return None
    return read_calls({"tool_calls": value}, f"the {name}")
