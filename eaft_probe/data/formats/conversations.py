"""Conversations: with a system column, as preferences, as one text, or as a chat program's tree."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from eaft_probe.data.formats.format import Example, Row
from eaft_probe.data.messages import (
    USUAL,
    Message,
    Spelling,
    checked,
    read_messages,
    read_tools,
    text,
)
from eaft_probe.errors import RowError

# A speaker at the start of a paragraph: HH-RLHF's "\n\nHuman: ", Glaive's "\n\n\nASSISTANT: ".
SPEAKER = re.compile(
    r"(?:\A\s*|\n\n\s*)(Human|Assistant|USER|ASSISTANT|SYSTEM|FUNCTION RESPONSE): ?"
)
THOUGHT = "reasoning_content"
END_OF_TEXT = "<|endoftext|>"  # which Glaive writes behind its answers


def conversation(row: Row, messages: tuple[Message, ...], spelling: Spelling = USUAL) -> Example:
    """The messages with what the row's other columns say of them."""
    require_target(row)
    if row.get("chosen") and messages[-1].role != "assistant":
        messages = _with_chosen(messages, row, spelling)
    if row.get("system") and messages[0].role != "system":
        messages = (Message("system", text(row["system"], "the system prompt")), *messages)
    return Example("", messages, tools=tools_of(row))


def require_target(row: Row) -> None:
    """Raises `RowError` for an answer that KTO marks as one not to give."""
    if str(row.get("label")).lower() == "false":
        raise RowError("label is false: the answer is not one to be learned")


def tools_of(row: Row) -> Sequence[object] | None:
    """The row's tools, or the functions that OpenAI had before."""
    functions = read_tools(row.get("functions"))
    wrapped = [{"type": "function", "function": f} for f in functions or ()]
    return read_tools(row.get("tools")) or wrapped or None


def as_context(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Answers within a prompt are not learned, unless the row says so."""
    return tuple(
        replace(m, trained=False) if m.role == "assistant" and m.trained is None else m
        for m in messages
    )


# --- preferences ---


def chosen_conversation(row: Row, spelling: Spelling) -> Example:
    """The chosen answer behind the prompt: of whole conversations what both of them begin with."""
    chosen = _one_or_more(row["chosen"], spelling)
    if _is_whole(chosen):
        return conversation(row, _with_context(chosen, row, spelling))
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return conversation(row, (Message("user", text(prompt, "the prompt")), *chosen))
    return conversation(row, (*as_context(read_messages(prompt, spelling, "prompt")), *chosen))


def _with_chosen(
    messages: tuple[Message, ...], row: Row, spelling: Spelling
) -> tuple[Message, ...]:
    """The chosen answer behind the messages; a chosen conversation repeats them."""
    chosen = _one_or_more(row["chosen"], spelling)
    if not _is_whole(chosen):
        return (*messages, *chosen)
    before = messages[:1] if messages[0].role == "system" != chosen[0].role else ()
    return (*before, *_with_context(chosen, row, spelling))


def _is_whole(chosen: tuple[Message, ...]) -> bool:
    return chosen[0].role in ("user", "system")


def _with_context(chosen: tuple[Message, ...], row: Row, spelling: Spelling) -> tuple[Message, ...]:
    shared = _shared(chosen, row.get("rejected"), spelling)
    return (*as_context(chosen[:shared]), *chosen[shared:])


def _one_or_more(value: object, spelling: Spelling) -> tuple[Message, ...]:
    if isinstance(value, str):
        return read_transcript(value, "chosen")
    return read_messages([value] if isinstance(value, dict) else value, spelling, "chosen")


def _shared(chosen: tuple[Message, ...], rejected: object, spelling: Spelling) -> int:
    """How many messages both conversations begin with."""
    if not rejected:
        return 0
    pairs = zip(chosen, _one_or_more(rejected, spelling), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


# --- one text ---


def read_transcript(value: object, name: str) -> tuple[Message, ...]:
    """The turns of a text that names its speakers. Raises `RowError` where it names none."""
    whole = text(value, name)
    before, *pieces = SPEAKER.split(whole)
    if before.strip() or not pieces:
        raise RowError(f"{name} should begin with a speaker, such as 'Human:' or 'USER:'")
    roles = (Spelling().read(speaker) or "" for speaker in pieces[::2])
    return tuple(
        Message(role, said.strip().removesuffix(END_OF_TEXT).rstrip())
        for role, said in zip(roles, pieces[1::2], strict=True)
    )


def transcript(row: Row, spelling: Spelling) -> Example:
    """A column `chat`: a text, or messages."""
    chat, system = row["chat"], row.get("system")
    if not isinstance(chat, str) or chat.lstrip().startswith("["):
        return conversation(row, read_messages(chat, spelling, "chat"), spelling)
    if isinstance(system, str):
        row = {**row, "system": re.sub(r"\A\s*SYSTEM:", "", system).strip()}
    return conversation(row, read_transcript(chat, "chat"), spelling)


# --- a chat program's tree ---


def chat_export(row: Row, spelling: Spelling) -> Example:
    """ChatGPT's export: the branch that was open last. The others are named."""
    nodes = checked(row["mapping"], dict, "mapping")
    branch = list(_branch(nodes, str(row["current_node"])))[::-1]
    messages = [m for node in branch for m in _exported(node, spelling)]
    if not messages:
        raise RowError("the conversation is empty")
    spoken = sum(1 for node in nodes.values() for _ in _exported(node, spelling))
    left = spoken > len(messages) or any(map(_says_more, branch))
    example = conversation(row, tuple(_with_thoughts(messages)))
    return replace(example, not_read=("mapping",) if left else ())


def _with_thoughts(messages: Iterable[Message]) -> list[Message]:
    """A thought, a message of its own in the export, belongs to the answer behind it."""
    joined = list[Message]()
    for message in messages:
        last = joined[-1] if joined else message
        if joined and last.role == message.role == "assistant" and not last.content:
            thoughts = [m.extra[THOUGHT] for m in (last, message) if THOUGHT in m.extra]
            joined[-1] = replace(message, extra={THOUGHT: "\n\n".join(thoughts)})
        else:
            joined.append(message)
    return joined


def _content(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a node's message holds; nothing where it has none or is hidden."""
    message = node.get("message") if isinstance(node, dict) else None
    if not isinstance(message, dict):
        return {}
    content = checked(message.get("content"), dict, "a message's content")
    hidden = (message.get("metadata") or {}).get("is_visually_hidden_from_conversation")
    return {} if hidden else content


def _says_more(node: Mapping[str, Any]) -> bool:
    """Whether a node holds something else than words and thoughts."""
    content = _content(node)
    return not content.keys() & {"parts", "text", "thoughts"} and any(
        value for name, value in content.items() if name != "content_type"
    )


def _branch(nodes: Mapping[str, Any], last: str) -> Iterator[Mapping[str, Any]]:
    seen = set[str]()
    while last in nodes and last not in seen:
        seen.add(last)
        node = checked(nodes[last], dict, f"node {last}")
        yield node
        last = str(node.get("parent"))


def _exported(node: Mapping[str, Any], spelling: Spelling) -> Iterator[Message]:
    """The message of a node; none for one that is empty, or hidden from the conversation."""
    content = _content(node)
    role = (node["message"].get("author") or {}).get("role") if content else None
    thoughts = (checked(t, dict, "a thought") for t in content.get("thoughts") or ())
    if said := "\n\n".join(t.get("content") or t.get("summary") or "" for t in thoughts):
        yield from read_messages([{"role": role, THOUGHT: said}], spelling)
    parts = content.get("parts", content.get("text"))
    if not parts or parts == [""]:
        return
    if not isinstance(parts, str) and not all(isinstance(part, str) for part in parts):
        kind = content.get("content_type")
        raise RowError(f"a message has content of type {kind!r}; only text can be scored")
    said = parts if isinstance(parts, str) else "".join(parts)
    yield from read_messages([{"role": role, "content": said}], spelling)
