"""The formats. Of several that fit a row the first is taken: the richer stand before the poorer."""

from functools import partial

from eaft_probe.data.formats.columns import OTHER_NAMES, PROMPT_COLUMNS, QUESTIONS, parsed_structure
from eaft_probe.data.formats.conversations import (
    as_context,
    chat_export,
    chosen_conversation,
    conversation,
    require_target,
    transcript,
)
from eaft_probe.data.formats.format import FORMATS, Example, Row, row_format
from eaft_probe.data.formats.pairs import is_conversation, pair, plain_pair
from eaft_probe.data.messages import Message, Spelling, read_messages, text
from eaft_probe.errors import RowError

# Formats whose rows go past the chat template: a base and a chat model may share their tokens.
WITHOUT_TEMPLATE = ("text", "prompt-completion", "labelled")
KEYS = ("key", "id", "uuid", "conversation_id", "task_id")


@row_format("messages", "messages", "a list of {role, content}, with tools and tool calls")
def _read_messages(row: Row, spelling: Spelling) -> Example:
    return conversation(row, read_messages(row["messages"], spelling), spelling)


@row_format("sharegpt", "conversations", "a list of {from, value}; human, gpt, system, tool roles")
def _read_sharegpt(row: Row, spelling: Spelling) -> Example:
    return conversation(row, read_messages(row["conversations"], spelling), spelling)


@row_format("chat-export", "mapping current_node", "a conversation in ChatGPT's data export")
def _read_chat_export(row: Row, spelling: Spelling) -> Example:
    return chat_export(row, spelling)


@row_format(
    "prompt-completion",
    "prompt completion",
    "strings: plain text without the chat template",
)
def _read_prompt_completion(row: Row, spelling: Spelling) -> Example:
    asked, answers = (_turns(row[n], n, spelling) for n in ("prompt", "completion"))
    if not (asked or answers) or all(isinstance(row[n], str) for n in ("prompt", "completion")):
        require_target(row)
        return plain_pair(row, "prompt", "completion")
    asked = asked or (Message("user", text(row["prompt"], "the prompt")),)
    answers = answers or (Message("assistant", text(row["completion"], "the completion")),)
    return conversation(row, (*as_context(asked), *answers), spelling)


def _turns(value: object, name: str, spelling: Spelling) -> tuple[Message, ...]:
    """The messages that a column holds, one or a list, also as JSON text; none of anything else."""
    read = parsed_structure(value) if isinstance(value, str) else value
    items = [read] if isinstance(read, dict) else read
    if not isinstance(items, list) or (isinstance(value, str) and not is_conversation(items)):
        return ()
    if any(isinstance(item, str) for item in items):  # a column of a table, not turns
        raise RowError(f"{name} is a list of texts; expected a text or a list of messages")
    return read_messages(items, spelling, name)


for _name, _question, _answer, _meaning in (
    ("question-attempt", "question", "attempt", "s1K: question, thinking, attempt"),
    ("question-solution", "question", "solution", "question, solution; an answer is named"),
    ("problem-solution", "problem", "solution", "problem, solution; an answer is named"),
    ("alpaca", "instruction", "output", "instruction, optional input, output"),
    ("instruction-response", "instruction", "response", "instruction, optional input, response"),
    ("question-answer", "question", "answer", "question, answer"),
    ("query-response", "query", "response", "query, response"),
):
    row_format(_name, f"{_question} {_answer}", _meaning)(
        partial(pair, question=_question, answer=_answer)
    )


@row_format("preference", "chosen", "the chosen answer, or the chosen conversation")
def _read_preference(row: Row, spelling: Spelling) -> Example:
    asked = next((c for c in ("prompt", *QUESTIONS) if row.get(c)), None)
    if asked is None or not isinstance(row["chosen"], str):
        return chosen_conversation(row, spelling)
    if asked == "prompt" and isinstance(row[asked], str):  # as TRL reads it
        return plain_pair(row, "prompt", "chosen")
    return pair(row, spelling, asked, "chosen")


@row_format("transcript", "chat", "a text that names its speakers: USER: … ASSISTANT: …", "system")
def _read_transcript(row: Row, spelling: Spelling) -> Example:
    return transcript(row, spelling)


@row_format("text", "text", "plain text: every token trained, then the end-of-text token")
def _read_text(row: Row, spelling: Spelling) -> Example:
    return Example("", (Message("assistant", text(row["text"], "the text")),), plain=True)


@row_format("labelled", "input_ids labels", "token ids with labels, -100 where not trained")
def _read_labelled(row: Row, spelling: Spelling) -> Example:
    ids, labels = (_integers(row[c], c) for c in ("input_ids", "labels"))
    if len(ids) != len(labels):
        raise RowError(f"{len(ids)} input_ids but {len(labels)} labels")
    for at, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in (token, -100):
            raise RowError(f"label {label} at {at} should be -100 or the token there, {token}")
    return Example("", (), labelled=(ids, labels))


def _integers(value: object, what: str) -> list[int]:
    if isinstance(value, list) and all(type(v) is int for v in value):
        return value
    raise RowError(f"{what} should be a list of whole numbers")


# What --columns may map: the columns of every format, optional ones, and the keys of messages.
MAPPABLE = {c for f in FORMATS.values() for c in f.columns} | {
    *(*OTHER_NAMES, *PROMPT_COLUMNS, "role", "content"),
    *KEYS,
}
