"""Rows understood: every entry of FORMATS, mapped columns, and the reasons for refusals."""

import json
from typing import Any

import pytest

from eaft_probe.data.formats import FORMATS, Example, Message, RowFormat, infer_format
from eaft_probe.errors import FormatError, RowError

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
TURNS = (Message("user", "Hi"), Message("assistant", "Hello"))
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def exported(role: str, *parts: Any) -> dict[str, Any]:
    """A message as ChatGPT's export has it."""
    return {"author": {"role": role}, "content": {"content_type": "text", "parts": [*parts]}}


# format → a row of it, and what it means
MEANT: dict[str, tuple[dict[str, Any], Example]] = {
    "messages": ({"messages": CHAT}, Example("", TURNS)),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        Example("", TURNS),
    ),
    "chat-export": (
        {
            "mapping": {
                "r": {"parent": None, "message": None},
                "u": {"parent": "r", "message": exported("user", "Hi")},
                "a": {"parent": "u", "message": exported("assistant", "Hello")},
            },
            "current_node": "a",
        },
        Example("", TURNS),
    ),
    "question-attempt": ({"question": "Hi", "attempt": "Hello"}, Example("", TURNS)),
    "question-solution": ({"question": "Hi", "solution": "Hello"}, Example("", TURNS)),
    "problem-solution": ({"problem": "Hi", "solution": "Hello"}, Example("", TURNS)),
    "preference": ({"chosen": CHAT}, Example("", TURNS)),
    "transcript": ({"chat": "USER: Hi\n\n\nASSISTANT: Hello <|endoftext|>"}, Example("", TURNS)),
    "prompt-completion": (
        {"prompt": "Hi", "completion": "Hello"},
        Example("", TURNS, plain=True),
    ),
    "alpaca": ({"instruction": "Hi", "input": "", "output": "Hello"}, Example("", TURNS)),
    "instruction-response": ({"instruction": "Hi", "response": "Hello"}, Example("", TURNS)),
    "question-answer": ({"question": "Hi", "answer": "Hello"}, Example("", TURNS)),
    "query-response": ({"query": "Hi", "response": "Hello"}, Example("", TURNS)),
    "text": ({"text": "Hello"}, Example("", TURNS[1:], plain=True)),
    "labelled": (
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
        Example("", (), labelled=([1, 2, 3], [-100, 2, 3])),
    ),
}


def read(row: dict[str, Any], **columns: str) -> Example:
    return infer_format([row], columns)(row)


def refusal(row: dict[str, Any], **columns: str) -> str:
    with pytest.raises(RowError) as caught:
        read(row, **columns)
    message = str(caught.value)
    assert "\n" not in message
    message.encode()  # it goes to a file and to the terminal
    return message


def chat(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_inferred_and_read(name: str) -> None:
    row, meant = MEANT[name]
    assert infer_format([row], {}) == RowFormat(name)
    assert read(row) == meant
    assert FORMATS[name].meaning


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_without_a_column_says_which(name: str) -> None:
    first = FORMATS[name].columns[0]
    row = {k: v for k, v in MEANT[name][0].items() if k != first}
    with pytest.raises(RowError, match=f"no column '{first}', which format '{name}' needs"):
        RowFormat(name)(row)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [None, 3, {}, [None], [3]], ids=repr)
def test_a_column_of_another_type_is_a_rejected_row(name: str, value: Any) -> None:
    row = MEANT[name][0]
    for column in FORMATS[name].columns:
        if name == "labelled" and value == [3]:
            continue  # a list of numbers is what belongs there
        with pytest.raises(RowError):
            RowFormat(name)({**row, column: value})


# --- columns ---


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"traj": CHAT}, {"messages": "traj"}),
        (
            {"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            {"role": "from", "content": "value"},
        ),
        (
            {"traj": [{"who": "user", "says": "Hi"}, {"who": "assistant", "says": "Hello"}]},
            {"messages": "traj", "role": "who", "content": "says"},
        ),
        ({"question": "Hi", "answer": "4", "exp": "Hello"}, {"answer": "exp"}),
        ({"q": "Hi", "reply": "Hello"}, {"question": "q", "answer": "reply"}),
        ({"data": {"turns": CHAT}}, {"messages": "data.turns"}),
        ({"a.b": CHAT, "a": {"b": 3}}, {"messages": "a.b"}),
        ({"d": {"q": {"text": "Hi"}, "a": "Hello"}}, {"question": "d.q.text", "answer": "d.a"}),
    ],
)
def test_columns_are_mapped(row: dict[str, Any], columns: dict[str, str]) -> None:
    assert read(row, **columns) == Example("", TURNS)


def test_roles_of_messages_may_be_spelt_from_and_value() -> None:
    assert read(chat({"from": "human", "value": "Hi"}, CHAT[1])).messages == TURNS


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"text": "a", "messages": CHAT}, "messages"),
        ({"text": "a", "instruction": "Hi", "output": "Hello"}, "alpaca"),
        ({"conversations": CHAT, "instruction": "Hi", "response": "Hello"}, "sharegpt"),
        ({"question": "Hi", "solution": "Hello", "answer": "H"}, "question-solution"),
        ({"problem": "Hi", "solution": "Hello", "answer": "H"}, "problem-solution"),
        ({"prompt": "Hi", "chosen": CHAT, "messages": CHAT}, "messages"),
        ({"Question": "Hi", "output": "Hello", "text": "a"}, "text"),  # by its own name
    ],
)
def test_the_richer_format_wins_a_tie(row: dict[str, Any], name: str) -> None:
    assert infer_format([row], {}).name == name


def test_token_ids_beside_another_format_need_a_word() -> None:
    with pytest.raises(FormatError) as caught:
        infer_format([{"input_ids": [1], "labels": [1], "messages": CHAT}], {})
    for word in ("'labels'", "'messages'", "(messages, labelled)", "--format"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"traj": CHAT, "n": 1},
            "column 'traj' holds [{role, content}]: give --columns messages=traj",
        ),
        (
            {"n": [{"who": "human", "says": "Hi"}, {"who": "bot", "says": "Yo"}]},
            "holds [{who, says}]: give --columns messages=n,role=who,content=says",
        ),
        ({"data": ["Hi", "Hello"]}, "holds [text, text, …]: give --columns messages=data"),
        ({"d": {"messages": CHAT}}, "holds {messages}: give --columns messages=d.messages"),
        ({"d": {"dialog": CHAT}}, "holds {dialog}: give --columns messages=d.dialog"),
        (
            {"d": {"question": "Hi", "answer": "Hello"}},
            "give --columns question=d.question,answer=d.answer",
        ),
        ({"a b": {"messages": CHAT}}, "--columns 'messages=a b.messages'"),
        ({"rows": [{"input": "Hi", "target": "Hello"}]}, "write each as a row of its own"),
        ({"root": {"text": "Hi", "replies": []}}, "a tree of replies: write each path"),
        ({"id": "a", "q text": "What?", "reply": "That."}, "'question=q text,answer=reply'"),
        ({"n": 1}, "--columns question=…,answer=…"),
        ({"text": "a", "role": "prompter", "parent_id": "b"}, "with a column 'messages'"),
    ],
)
def test_what_fits_no_format_says_the_flag_from_its_values(row: dict[str, Any], says: str) -> None:
    with pytest.raises(FormatError) as caught:
        infer_format([row], {})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_rows_at_all_is_no_format() -> None:
    with pytest.raises(FormatError, match=r"\(none\)"):
        infer_format([], {})


def test_the_first_row_that_fits_decides() -> None:
    assert infer_format([{"meta": 1}, {"text": "a"}], {}).name == "text"


@pytest.mark.parametrize("column", ["key", "id", "uuid", "conversation_id", "task_id"])
def test_a_row_keeps_its_key(column: str) -> None:
    assert read({"text": "a", column: 0}).key == "0"
    assert read({"text": "a", column: None}).key == ""


# --- ShareGPT, Alpaca, prompts ---


def test_sharegpt_roles_of_tools() -> None:
    spoken = ["system", "human", "function_call", "observation", "function_response", "tool", "gpt"]
    row = {"conversations": [{"from": r, "value": r} for r in spoken], "tools": "[]"}
    assert [m.role for m in read(row).messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "tool",
        "assistant",
    ]


def test_sharegpt_takes_a_system_column_once() -> None:
    row = {**MEANT["sharegpt"][0], "system": "Be brief."}
    assert read(row).messages == (Message("system", "Be brief."), *TURNS)
    row["conversations"] = [{"from": "system", "value": "Own."}, *row["conversations"]]
    assert read(row).messages[0] == Message("system", "Own.")
    assert len(read(row).messages) == 3


def test_alpaca_input_follows_after_a_blank_line() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief."}
    assert read(row).messages == (
        Message("system", "Be brief."),
        Message("user", "Add.\n\n1 2"),
        Message("assistant", "3"),
    )
    assert read({**row, "input": None}).messages[1] == Message("user", "Add.")


def test_a_conversational_prompt_is_trained_only_by_its_own_word() -> None:
    """Its answers are given, not learned; the rest is for --train-on to decide."""
    prompt = [*CHAT, {"role": "user", "content": "And?", "train": True}]
    row = {"prompt": prompt, "completion": CHAT[1:]}
    example = read(row)
    assert not example.plain
    assert [m.trained for m in example.messages] == [None, False, True, None]


# --- messages ---


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": None}, "messages is empty"),
        ({"messages": "Hi"}, "messages is not JSON"),
        ({"messages": '"Hi"'}, "messages should be a list, found text"),
        ({"messages": "[]"}, "messages is empty"),
        ({"messages": []}, "messages is empty"),
        (chat("Hi"), "message 0 should be an object, found text"),
        (chat({"role": "wizard", "content": "Hi"}), "unknown role 'wizard'"),
        (chat({"role": None, "content": "Hi"}), "message 0 has no role"),
        (chat({"role": ["user"], "content": "Hi"}), "unknown role"),
        (chat({"content": "Hi"}), "message 0 has no role"),
        (chat({"role": "user", "content": None}), "message 0 has no content"),
        (chat({"role": "user"}), "message 0 has no content"),
        (chat({"role": "user", "content": 3}), "content should be text, found a number"),
        (chat({"role": "user", "content": {"a": 1}}), "content should be text, found an object"),
        (chat({"role": "user", "content": [{"type": "image"}]}), "part of type 'image'"),
        (chat({"role": "user", "content": ["Hi"]}), "part of type 'str'"),
        (chat({"role": "user", "content": [{"type": "text"}]}), "message 0: content is empty"),
        (chat(CHAT[0], {**CHAT[1], "tool_calls": "f()"}), "message 1: tool_calls is not JSON"),
        (chat(CHAT[0], {**CHAT[1], "tool_calls": {"f": 1}}), "tool_calls should be a list"),
        ({**chat(*CHAT), "tools": "{f"}, "tools is not JSON"),
        ({**chat(*CHAT), "tools": '{"f": 1}'}, "tools should be a list, found an object"),
        (chat({"role": "user", "content": "a\ud800b"}), "invalid Unicode at character 1"),
        (chat({"role": "\ud800", "content": "a"}), "unknown role"),
    ],
)
def test_messages_that_cannot_be_read(row: dict[str, Any], reason: str) -> None:
    assert reason in refusal(row)


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a\udc80"},
        {"prompt": "a", "completion": "\ud83d"},
        {"question": "a", "answer": "\ud83d"},
        {"instruction": "a", "input": "\ud83d", "output": "b"},
        {"question": "a", "choices": ["\ud83d", "b"], "answer": "b"},
        {"question": "a", "choices": "A. \ud83d", "answer": "b"},
        {"question": "a", "thinking": "\ud83d", "answer": "b"},
        {"question": "a", "answer": "b", "history": [["\ud83d", "b"]]},
        {"chosen": "\n\nHuman: \ud83d\n\nAssistant: b"},
        {"text": "a", "id": "\ud83d"},
        chat(CHAT[0], {**CHAT[1], "name": "\ud83d"}),
        chat(CHAT[0], {**CHAT[1], "tool_calls": [{"name": "\ud83d"}]}),
        {**chat(*CHAT), "tools": [{"name": "\ud83d"}]},
        {**chat(*CHAT), "tools": json.dumps([{"name": "\ud83d"}])},
    ],
)
def test_half_characters_anywhere_are_a_rejected_row(row: dict[str, Any]) -> None:
    assert "invalid Unicode" in refusal(row)


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "He"}, {"text": "llo"}]
    assert read(chat(CHAT[0], {"role": "assistant", "content": parts})).messages == TURNS


@pytest.mark.parametrize("name", ["train", "weight", "loss"])
@pytest.mark.parametrize(
    ("word", "meant"),
    [(True, True), (False, False), (1, True), (0, False), (1.0, True), (0.0, False), (None, None)],
)
def test_a_message_has_its_own_word(name: str, word: Any, meant: bool | None) -> None:
    message = read(chat(CHAT[0], {**CHAT[1], name: word})).messages[1]
    assert message.trained is meant
    assert name not in message.extra


@pytest.mark.parametrize("word", [0.5, 2, "yes", [], {}, float("nan")], ids=repr)
def test_a_weight_between_is_refused(word: Any) -> None:
    assert "weight should be true, false, 0 or 1" in refusal(
        chat(CHAT[0], {**CHAT[1], "weight": word})
    )


def test_tool_calls_need_no_content() -> None:
    for content in ({}, {"content": None}, {"content": ""}):
        row = chat(CHAT[0], {"role": "assistant", **content, "tool_calls": [CALL]})
        message = read(row).messages[1]
        assert message == Message("assistant", "", None, [CALL])
        assert message.as_dict() == {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize("calls", [None, []])
def test_no_tool_calls_are_none(calls: Any) -> None:
    message = read(chat(CHAT[0], {**CHAT[1], "tool_calls": calls})).messages[1]
    assert message == TURNS[1]


@pytest.mark.parametrize("tools", [[CALL], json.dumps([CALL])])
def test_tools_are_a_list_or_its_json(tools: Any) -> None:
    assert read({**chat(*CHAT), "tools": tools}).tools == [CALL]


@pytest.mark.parametrize("tools", [None, [], "", " ", "[]", "null"])
def test_no_tools_are_none(tools: Any) -> None:
    assert read({**chat(*CHAT), "tools": tools}).tools is None


def test_what_templates_may_read_is_kept() -> None:
    row = chat({"role": "tool", "content": "3", "name": "f", "tool_call_id": "1", "other": None})
    message = read(row).messages[0]
    assert message.as_dict() == {
        "role": "tool",
        "content": "3",
        "name": "f",
        "tool_call_id": "1",
    }


# --- labelled ---


@pytest.mark.parametrize(
    ("ids", "labels", "reason"),
    [
        ([1, 2], [1], "2 input_ids but 1 labels"),
        ([1, 2], [-100, 3], "label 3 at 1 should be -100 or the token there, 2"),
        ([1, 2.0], [1, 2], "input_ids should be a list of whole numbers"),
        ([1, True], [1, 1], "input_ids should be a list of whole numbers"),
        ("12", [1, 2], "input_ids should be a list of whole numbers"),
        ([1, 2], None, "labels should be a list of whole numbers"),
    ],
)
def test_labels_that_do_not_belong_to_their_ids(ids: Any, labels: Any, reason: str) -> None:
    assert reason in refusal({"input_ids": ids, "labels": labels})
