"""Row → `Example`: one entry of FORMATS for each shape that fine-tuning data comes in.

A format is inferred from the columns of the data; where none or more than one fits, the error
names the columns seen and the formats tried.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eaft_probe.data.messages import Message, encodable, read_messages, read_tools, text
from eaft_probe.errors import FormatError, RowError
from eaft_probe.registry import Registry

# Formats whose rows go past the chat template: a base and a chat model may share their tokens.
WITHOUT_TEMPLATE = ("text", "prompt-completion", "labelled")

Row = Mapping[str, Any]
Names = Mapping[str, str]  # a format's name of a column → the data's

KEYS = ("key", "id", "uuid", "conversation_id", "task_id")


@dataclass(frozen=True, slots=True)
class Example:
    """One row understood. `plain` text skips the chat template; `labelled` brings its own ids."""

    key: str
    messages: tuple[Message, ...]
    plain: bool = False
    tools: Sequence[object] | None = None
    labelled: tuple[Sequence[int], Sequence[int]] | None = None  # input_ids, labels


@dataclass(frozen=True, slots=True)
class Format:
    """A shape of rows: the columns it must have, and what it makes of them."""

    columns: tuple[str, ...]
    meaning: str
    read: "Reading"


Reading = Callable[[Row, Names], Example]
FORMATS = Registry[Format]("format")


def _format(name: str, columns: str, meaning: str) -> Callable[[Reading], Reading]:
    return lambda read: FORMATS.add(name, Format(tuple(columns.split()), meaning, read)).read


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A format bound to the user's column names: `columns` maps the format's name to the data's."""

    name: str
    columns: Names = field(default_factory=dict)

    def __call__(self, row: Row) -> Example:
        """Reads one row. Raises `RowError` with the reason where it cannot."""
        row = _renamed(row, self.columns)
        missing = [c for c in FORMATS[self.name].columns if c not in row]
        if missing:
            raise RowError(f"no column {missing[0]!r}, which format {self.name!r} needs")
        example = FORMATS[self.name].read(row, self.columns)
        if row.get("finish") == "length" and example.messages:  # a rollout's answer that was cut
            last = replace(example.messages[-1], ends=False)
            example = replace(example, messages=(*example.messages[:-1], last))
        key = next((str(row[k]) for k in KEYS if row.get(k) is not None), "")
        return replace(example, key=encodable(key, "the key"))


def infer_format(rows: Iterable[Row], columns: Names) -> RowFormat:
    """The only format whose columns a row has, from the first row that any format fits.

    Raises `FormatError` where none of `rows` fits, or where several formats fit.
    """
    seen: list[str] = []
    for row in rows:
        renamed = _renamed(row, columns)
        fits = [n for n, f in FORMATS.items() if all(c in renamed for c in f.columns)]
        if len(fits) == 1:
            return RowFormat(fits[0], columns)
        if fits:
            raise FormatError(
                f"the columns {_names(row)} fit more than one format ({', '.join(fits)}); "
                f"choose one with --format"
            )
        seen = seen or list(row)
    wanted = "; ".join(f"{n}: {'+'.join(f.columns)}" for n, f in FORMATS.items())
    raise FormatError(
        f"no known format has the columns {_names(seen)} (tried {wanted}); "
        f"map other names with --columns, for example --columns question=prompt,answer=reply"
    )


def _names(columns: Iterable[str]) -> str:
    return ", ".join(map(repr, columns)) or "(none)"


def _renamed(row: Row, columns: Names) -> Row:
    """The row with mapped columns under the format's own names alone."""
    mapped = {new: row[old] for new, old in columns.items() if old in row}
    return {k: v for k, v in row.items() if k not in columns.values()} | mapped


def _pair(row: Row, prompt: str, answer: str, *more: str) -> tuple[Message, ...]:
    """`more`: optional columns that follow the prompt, each after a blank line."""
    system = [Message("system", text(row["system"], "system"))] if row.get("system") else []
    parts = [text(row[prompt], prompt), *(text(row.get(c) or "", c) for c in more)]
    user = Message("user", "\n\n".join(filter(None, parts)))
    return (*system, user, Message("assistant", text(row[answer], answer)))


@_format("messages", "messages", "a list of {role, content}, with tools and tool calls")
def _read_messages(row: Row, names: Names) -> Example:
    return Example("", read_messages(row["messages"], names), tools=read_tools(row.get("tools")))


@_format("sharegpt", "conversations", "a list of {from, value}; human, gpt, system, tool roles")
def _read_sharegpt(row: Row, names: Names) -> Example:
    messages = read_messages(row["conversations"], names)
    if row.get("system") and messages[0].role != "system":
        messages = (Message("system", text(row["system"], "system")), *messages)
    return Example("", messages, tools=read_tools(row.get("tools")))


@_format("prompt-completion", "prompt completion", "strings: plain text without the chat template")
def _read_prompt_completion(row: Row, names: Names) -> Example:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Example("", _pair(row, "prompt", "completion"), plain=True)
    # Answers within the prompt are not learned; of the rest --train-on decides.
    context = (
        replace(m, trained=False) if m.role == "assistant" and m.trained is None else m
        for m in read_messages(prompt, names)
    )
    answers = read_messages(completion, names)
    return Example("", (*context, *answers), tools=read_tools(row.get("tools")))


@_format("alpaca", "instruction output", "instruction, optional input, output")
def _read_alpaca(row: Row, names: Names) -> Example:
    return Example("", _pair(row, "instruction", "output", "input"))


@_format("instruction-response", "instruction response", "instruction, optional input, response")
def _read_instruction_response(row: Row, names: Names) -> Example:
    return Example("", _pair(row, "instruction", "response", "input"))


@_format("question-answer", "question answer", "question, answer")
def _read_question_answer(row: Row, names: Names) -> Example:
    return Example("", _pair(row, "question", "answer"))


@_format("query-response", "query response", "query, response")
def _read_query_response(row: Row, names: Names) -> Example:
    return Example("", _pair(row, "query", "response"))


@_format("text", "text", "plain text: every token trained, then the end-of-text token")
def _read_text(row: Row, names: Names) -> Example:
    return Example("", (Message("assistant", text(row["text"], "text")),), plain=True)


@_format("labelled", "input_ids labels", "token ids with labels, -100 where not trained")
def _read_labelled(row: Row, names: Names) -> Example:
    ids, labels = (_integers(row[c], c) for c in ("input_ids", "labels"))
    if len(ids) != len(labels):
        raise RowError(f"{len(ids)} input_ids but {len(labels)} labels")
    for at, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in (token, -100):
            raise RowError(f"label {label} at {at} should be -100 or the token there, {token}")
    return Example("", (), labelled=(ids, labels))


# What --columns may map: the columns of every format, optional ones, and the keys of messages.
MAPPABLE = {c for f in FORMATS.values() for c in f.columns} | {
    *("system", "input", "tools", "role", "content"),
    *KEYS,
}


def _integers(value: object, what: str) -> list[int]:
    if isinstance(value, list) and all(type(v) is int for v in value):
        return value
    raise RowError(f"{what} should be a list of whole numbers")
