"""Tool calls, results and definitions as JSON text, for templates that show none."""

from collections.abc import Collection
from typing import Any

import pytest
import templates_made as templates
from renderings_made import CHAT, TOOL, TOOL_CHAT, called, rendered, runs_of_text, system, tool

from eaft_probe.data.formats import Example, Message
from eaft_probe.data.inline import inline_tool_calls

JSON = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
ROLES = {"system", "user", "assistant", "tool"}


def shown(
    *messages: Message, tools: Any = None, roles: Collection[str] = ROLES
) -> list[tuple[str, str]]:
    made = inline_tool_calls(Example("", messages, tools=tools), roles)
    assert made.tools is None
    assert not any(m.tool_calls for m in made.messages)
    return [(m.role, m.content) for m in made.messages]


def test_calls_stand_in_the_content_one_on_a_line() -> None:
    chat = (TOOL_CHAT[0], called("Look.", "Paris", "Paris"), *TOOL_CHAT[2:])
    assert shown(*chat)[1] == ("assistant", f"Look.\n{JSON}\n{JSON}")
    assert shown(*TOOL_CHAT)[1:3] == [("assistant", JSON), ("tool", "sunny")]


def test_results_are_the_users_where_there_is_no_tool_role() -> None:
    chat = (*TOOL_CHAT[:2], tool("sunny"), tool("warm"), CHAT[2], CHAT[3])
    found = shown(*chat, roles=ROLES - {"tool"})
    assert found[2:] == [("user", "sunny\nwarm\nAnd 1+1?"), ("assistant", "Two.")]


@pytest.mark.parametrize("roles", [ROLES, ROLES - {"system"}])
def test_definitions_join_the_system_message(roles: set[str]) -> None:
    first = shown(system("Be brief."), *CHAT, tools=[{"name": "é"}], roles=roles)[0]
    assert first == ("system", 'Be brief.\n{"name": "é"}')


def test_definitions_without_a_system_message() -> None:
    tools = [{"name": "f"}, {"name": "g"}]
    found = shown(*CHAT, tools=tools)
    assert found[0] == ("system", '{"name": "f"}\n{"name": "g"}')
    assert found[1] == ("user", CHAT[0].content)
    found = shown(*CHAT, tools=tools, roles=ROLES - {"system"})
    assert found[0] == ("user", f'{{"name": "f"}}\n{{"name": "g"}}\n\n{CHAT[0].content}')
    assert len(found) == len(CHAT)


def test_what_is_trained_of_inlined_calls() -> None:
    made = rendered(templates.CHATML, *TOOL_CHAT, tools=[TOOL], tool_calls="inline")
    assert runs_of_text(made) == [f"{JSON}<|im_end|>", "It is sunny.<|im_end|>"]
    assert made.text.startswith('<|im_start|>system\n{"type": "function"')
    assert "<|im_start|>tool\nsunny" in made.text
    assert not made.left_out


@pytest.mark.parametrize(
    "template", [templates.MISTRAL, templates.ALTERNATING, templates.GEMMA, templates.THREE_ROLES]
)
def test_templates_that_insist_on_turns_or_know_no_system(template: str) -> None:
    chat = (*TOOL_CHAT[:2], tool("sunny"), tool("warm"), *TOOL_CHAT[3:], *CHAT)
    made = rendered(template, *chat, tools=[TOOL], tool_calls="inline")
    starts = [JSON, "It is sunny.", "It is 4.", "Two."]
    for found, start in zip(runs_of_text(made), starts, strict=True):
        assert found.strip().startswith(start)
    assert ("sunny\nwarm" in made.text) == (template != templates.GEMMA)  # which shows any role
    assert '"description": "Sky"' in made.text
    assert not made.left_out
