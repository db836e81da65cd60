"""Tool calls as JSON text in the messages' contents, for chat templates that show none."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from eaft_probe.data.formats import Example
from eaft_probe.data.messages import Message


def inline_tool_calls(example: Example, roles: Collection[str]) -> Example:
    """Tool calls and definitions as JSON text.

    `roles` are those that the template shows: without "tool" a result is the user's, and what
    follows from the user is part of it, since many templates insist on turns; without "system" the
    definitions stand in the first message.
    """
    messages = [_inlined(m, "tool" in roles) for m in example.messages]
    if "tool" not in roles:
        messages = list(_merged(messages))
    if example.tools:
        messages = _defined(messages, example.tools, "system" in roles)
    return replace(example, messages=tuple(messages), tools=None)


def _inlined(message: Message, keep_tool_role: bool) -> Message:
    calls = [
        json.dumps(c.get("function", c) if isinstance(c, dict) else c, ensure_ascii=False)
        for c in message.tool_calls or ()
    ]
    content = "\n".join([*([message.content] if message.content else []), *calls])
    role = "user" if message.role == "tool" and not keep_tool_role else message.role
    return replace(message, role=role, content=content, tool_calls=None)


def _merged(messages: Sequence[Message]) -> Iterator[Message]:
    """The messages, with those of a user that follow each other as one."""
    for role, group in groupby(messages, lambda m: m.role):
        run = list(group)
        merged = replace(run[0], content="\n".join(m.content for m in run))
        yield from [merged] if role == "user" else run


def _defined(messages: list[Message], tools: Sequence[object], system: bool) -> list[Message]:
    listing = "\n".join(json.dumps(t, ensure_ascii=False) for t in tools)
    if not messages or (system and messages[0].role != "system"):
        return [Message("system", listing), *messages]
    first = messages[0]
    own = first.role == "system"
    content = f"{first.content}\n{listing}" if own else f"{listing}\n\n{first.content}"
    return [replace(first, content=content), *messages[1:]]
