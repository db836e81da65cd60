"""A row's messages in one shape, whichever of the field's spellings they came in."""

import json
from typing import Any

import pyarrow as pa
import pytest

from eaft_probe.data.files.tables import without_nulls
from eaft_probe.data.messages import Message, read_messages, read_tools, text
from eaft_probe.errors import RowError

ARGUMENTS = {"city": "Paris", "zone": None}
CALL = {"type": "function", "function": {"name": "f", "arguments": ARGUMENTS}}
HI = {"role": "user", "content": "Hi"}


def read(*messages: Any) -> tuple[Message, ...]:
    return read_messages(list(messages))


def answer(**fields: Any) -> Message:
    """What is read of an assistant's message."""
    return read(HI, {"role": "assistant", **fields})[1]


def refusal(*messages: Any) -> str:
    with pytest.raises(RowError) as caught:
        read(*messages)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- tool calls ---


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        [{"function": CALL["function"]}],
        [CALL["function"]],
        [{"type": "function", "function": {"name": "f", "arguments": json.dumps(ARGUMENTS)}}],
        [{"name": "f", "arguments": json.dumps(ARGUMENTS)}],
        json.dumps([CALL]),
        [json.dumps(CALL)],
        [{"type": "function", "function": json.dumps(CALL["function"])}],
        json.dumps([json.dumps({"name": "f", "arguments": json.dumps(ARGUMENTS)})]),
    ],
    ids=str,
)
def test_calls_in_every_spelling_are_one_shape(calls: Any) -> None:
    for content in (None, "", "Look."):
        message = answer(content=content, tool_calls=calls)
        assert message.tool_calls == [CALL]
        assert message.content == (content or "")


@pytest.mark.parametrize(
    ("arguments", "read_as"),
    [
        (None, {}),
        ("", {}),
        (" ", {}),
        ("{}", {}),
        ('{"a": null}', {"a": None}),
        ("not JSON", "not JSON"),
        ("[1]", "[1]"),
        ([1], [1]),
    ],
    ids=str,
)
def test_arguments_are_an_object_where_they_can_be(arguments: Any, read_as: Any) -> None:
    (call,) = answer(tool_calls=[{"name": "f", "arguments": arguments}]).tool_calls or ()
    assert call["function"]["arguments"] == read_as


def test_what_else_a_call_has_is_kept() -> None:
    (call,) = answer(tool_calls=[{"id": "call00001", "index": 0, **CALL}]).tool_calls or ()
    assert call == {"id": "call00001", "index": 0, **CALL}
    (call,) = answer(tool_calls=[{"id": "x", "name": "f", "arguments": {}}]).tool_calls or ()
    assert call == {"type": "function", "id": "x", "function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize("spell", [lambda call: call, json.dumps])
def test_the_older_function_call_is_a_call(spell: Any) -> None:
    message = answer(content=None, function_call=spell({"name": "f", "arguments": "{}"}))
    assert message.tool_calls == [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    assert "function_call" not in message.extra
    both = answer(tool_calls=[CALL], function_call={"name": "g", "arguments": "{}"})
    assert both.tool_calls == [CALL]


@pytest.mark.parametrize("name", ["tool_calls", "function_call"])
@pytest.mark.parametrize("value", [None, [], "", "null", "[]", {}])
def test_no_calls_are_none(name: str, value: Any) -> None:
    message = answer(content="Hello", **{name: value})
    assert message == Message("assistant", "Hello")


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ("f()", "message 1: tool_calls is not JSON"),
        ('{"a": 1}', "message 1: tool_calls should be a list, found an object"),
        (3, "message 1: tool_calls should be a list, found a number"),
        ([3], "message 1: a tool call should be an object, found a number"),
        ([None], "message 1: a tool call is empty"),
        (["{"], "message 1: a tool call is not JSON"),
        ([{}], "message 1: a tool call does not name its function"),
        ([{"function": {"arguments": {}}}], "message 1: a tool call does not name its function"),
        ([{"name": None, "arguments": {}}], "message 1: a tool call does not name its function"),
        ([{"function": "f"}], "message 1: a tool call's function is not JSON"),
    ],
    ids=str,
)
def test_calls_that_cannot_be_read(calls: Any, reason: str) -> None:
    assert reason in refusal(HI, {"role": "assistant", "content": "", "tool_calls": calls})


# --- contents ---


@pytest.mark.parametrize("kind", ["thinking", "reasoning"])
def test_thinking_parts_are_a_thought(kind: str) -> None:
    parts = [
        {"type": kind, kind: "one "},
        {"type": "text", "text": "A"},
        {"type": "text", "text": "."},
    ]
    message = answer(content=parts)
    assert message == Message("assistant", "A.", extra={"reasoning_content": "one "})
    parts[0] = {"type": kind, kind: [{"type": "text", "text": "one "}]}
    assert answer(content=parts) == message
    parts[0] = {"type": kind, "text": "one "}
    assert answer(content=parts) == message
    assert answer(content=parts, reasoning_content="own").extra == {"reasoning_content": "own"}
    with pytest.raises(RowError, match="only a message can have one"):
        text(parts, "answer")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_needs_no_content(name: str) -> None:
    for content in ({}, {"content": None}):
        message = answer(**content, **{name: "one"})
        assert message == Message("assistant", "", extra={name: "one"})
        assert message.says_anything
    assert "message 1 has no content" in refusal(HI, {"role": "assistant", name: ""})


def test_what_says_anything() -> None:
    assert answer(content="A").says_anything
    assert answer(content="", tool_calls=[CALL]).says_anything
    assert not answer(content=" \n").says_anything
    assert not answer(content="", reasoning_content="  ").says_anything


def test_messages_as_json_text() -> None:
    rows = [HI, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert read_messages(json.dumps(rows)) == read(*rows)
    with pytest.raises(RowError, match="messages is not JSON"):
        read_messages("[{")


@pytest.mark.parametrize("tools", [[CALL], json.dumps([CALL]), [json.dumps(CALL)]], ids=str)
def test_tools_all_or_each_as_json_text(tools: Any) -> None:
    assert read_tools(tools) == [CALL]


@pytest.mark.parametrize(
    ("tools", "reason"),
    [("{", "tools is not JSON"), (["{"], "tools is not JSON"), ({"a": 1}, "should be a list")],
)
def test_tools_that_cannot_be_read(tools: Any, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        read_tools(tools)


@pytest.mark.parametrize(
    ("role", "read_as"),
    [
        ("human", "user"),
        ("GPT", "assistant"),
        ("model", "assistant"),
        ("function", "tool"),
        ("developer", "developer"),
        ("ipython", "ipython"),
        ("function_call", "assistant"),
    ],
)
def test_roles_by_their_usual_names(role: str, read_as: str) -> None:
    assert read({"role": role, "content": "x"})[0].role == read_as


# --- nulls ---


def test_the_nulls_of_a_table_are_none_of_the_rows() -> None:
    """Arrow fills every struct up to the fields of all; JSON has those that somebody wrote."""
    calls = [
        [{"function": {"name": "f", "arguments": {"city": "Paris"}}, "name": None}],
        [{"function": {"name": "g", "arguments": {"zone": "CET"}}, "name": None}],
    ]
    rows = [
        {"messages": [HI, {"role": "assistant", "content": None, "tool_calls": c}]} for c in calls
    ]
    table = pa.Table.from_pylist(rows)
    for row, name, key in zip(table.to_pylist(), "fg", ("city", "zone"), strict=True):
        filled = row["messages"][1]["tool_calls"][0]["function"]["arguments"]
        assert sorted(filled) == ["city", "zone"]
        cleaned = without_nulls(row)
        (call,) = read(*cleaned["messages"])[1].tool_calls or ()
        assert call["function"]["name"] == name
        assert list(call["function"]["arguments"]) == [key]
    assert answer(tool_calls=[CALL]).tool_calls == [CALL]  # a null in JSON is somebody's


def test_columns_of_a_table_stay_null_and_so_do_items() -> None:
    row = {"a": None, "b": [None, {"c": None, "d": 0, "e": [{"f": None}]}], "g": ""}
    assert without_nulls(row) == {"a": None, "b": [None, {"d": 0, "e": [{}]}], "g": ""}
    assert without_nulls(3) == 3
