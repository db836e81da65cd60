"""Tool calls as JSON text in the messages' contents, for chat templates that show none."""

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import groupby

from eaft_probe.data.formats import Example
from eaft_probe.data.messages import Message


def inlined(example: Example, roles: Collection[str]) -> Example:
    """Tool calls and definitions as JSON text.

    `roles` are those that the template shows: without "tool" a result is the user's, and what
    follows from the user is part of it, since many templates insist on turns; without "system" the
    definitions stand in the first message.
    """
    messages = [_inlined(m, "tool" in roles) for m in example.messages]
    if "tool" not in roles:
        messages = [
            m for _, group in groupby(messages, lambda m: m.role) for m in _merged(list(group))
        ]
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


def _merged(messages: Sequence[Message]) -> Sequence[Message]:
    """Messages of a user that follow each other as one."""
    if messages[0].role != "user":
        return messages
    return [replace(messages[0], content="\n".join(m.content for m in messages))]


def _defined(messages: list[Message], tools: Sequence[object], system: bool) -> list[Message]:
    listing = "\n".join(json.dumps(t, ensure_ascii=False) for t in tools)
    first, rest = (messages[0], messages[1:]) if messages else (None, [])
    if first and first.role == "system":
        return [replace(first, content=f"{first.content}\n{listing}"), *rest]
    if first and not system:
        return [replace(first, content=f"{listing}\n\n{first.content}"), *rest]
    return [Message("system", listing), *messages]
