"""Shapes of public data sets, in rows of our own: what is read of each, and what is named."""

import json
import random
import re
from typing import Any

import pytest

from eaft_probe.data.formats import Example, infer_format
from eaft_probe.errors import RowError

ASK, SAY = "Where is the Mole?", "In Turin."
CALLS = [{"name": "find", "arguments": {"x": "Mole"}}]
TOOL = {"name": "find", "description": "finds", "parameters": {}}
USER, BOT = {"role": "user", "content": ASK}, {"role": "assistant", "content": SAY}
WORSE = {"role": "assistant", "content": "No idea."}


def read(row: dict[str, Any]) -> Example:
    return infer_format([row], {})(row)


def turns(example: Example) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in example.messages]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASK, "response": SAY},
        {"input": ASK, "output": SAY},
        {"input": ASK, "target": SAY},  # BBH
        {"Question": ASK, "Best Answer": SAY},  # TruthfulQA
        {"question": ASK, "answers": [SAY]},
        {"question": ASK, "answers": {"text": [SAY, SAY], "answer_start": [0, 0]}},  # SQuAD
        {"QUESTION": ASK, "LONG-ANSWER": SAY},
        {"problem": ASK, "solution": SAY, "answer": "Turin"},  # NuminaMath
        {"question": ASK, "solution": SAY, "answer": "Turin"},  # LIMO
        {"conversations": [ASK, SAY]},  # LIMA
        {"conversation": [{"input": ASK, "output": SAY}]},  # Capybara
        {"dialog": [USER, BOT]},
        {"conversation": [USER, BOT], "instruction": None},  # WildChat
        {"dialogue": json.dumps([USER, BOT])},
        {"contents": [{"role": "user", "parts": [{"text": ASK}]}, {"role": "model", "parts": SAY}]},
        {"chat_messages": [{"sender": "human", "text": ASK}, {"sender": "assistant", "text": SAY}]},
        {"messages": [list(USER.items()), list(BOT.items())]},  # a map in Arrow
        {"messages": [[ASK, SAY]]},
        {"messages": [{"role": "user", "content": [{"type": "text", "value": ASK}]}, BOT]},
        {"question": ASK.encode(), "answer": SAY.encode()},
        {"chosen": [USER, BOT]},
        {"prompt": ASK, "chosen": [USER, BOT]},
        {"prompt": ASK, "chosen": [BOT]},
        {"prompt": [USER], "chosen": BOT},
        {"prompt": [USER], "chosen": SAY},
        {"prompt": [USER], "response": SAY},
        {"prompt": [USER], "completion": SAY},
        {"prompt": USER, "completion": [BOT]},
        {"prompt": ASK, "completion": BOT},
        {"prompt": json.dumps([USER]), "completion": [BOT]},
        {"question": ASK, "chosen": SAY},
        {
            "conversations": [{"from": "human", "value": ASK}],
            "chosen": {"from": "gpt", "value": SAY},
        },
        {"chosen": f"\n\nHuman: {ASK}\n\nAssistant: {SAY}"},  # HH-RLHF
        {"chat": [USER, BOT]},
        {"instruction": ASK, "context": "", "response": SAY, "history": [], "choices": None},
        {"instruction": ASK, "output": SAY, "history": "[]"},
    ],
    ids=str,
)
def test_a_question_and_its_answer(row: dict[str, Any]) -> None:
    example = read(row)
    assert turns(example) == [("user", ASK), ("assistant", SAY)]
    assert not example.plain
    assert example.not_read == ()


@pytest.mark.parametrize(
    "named", [{"prompt": ASK, "chosen": SAY}, {"prompt": ASK, "completion": SAY}]
)
def test_strings_as_trl_names_them_are_plain(named: dict[str, str]) -> None:
    example = read(named)
    assert example.plain
    assert turns(example) == [("user", ASK), ("assistant", SAY)]


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"instruction": ASK, "context": "A tower.", "response": SAY}, f"{ASK}\n\nA tower."),
        ({"instruction": ASK, "query": "A tower?", "response": SAY}, f"{ASK}\n\nA tower?"),
        (
            {"question": ASK, "contexts": ["One.", "Two."], "answer": SAY},
            f"{ASK}\n\nOne.\n\nTwo.",
        ),
        (
            {"question": ASK, "context": {"contexts": ["One."], "labels": ["B"]}, "answer": SAY},
            f"{ASK}\n\nOne.",
        ),
        *(
            ({"question": ASK, "options": options, "answer": SAY}, f"{ASK}\n\nA. {SAY}\nB. Here.")
            for options in (
                [SAY, "Here."],
                {"A": SAY, "B": "Here."},
                {"text": [SAY, "Here."], "label": ["A", "B"]},
                [{"key": "A", "value": SAY}, {"key": "B", "value": "Here."}],
                json.dumps([SAY, "Here."]),
                f"A. {SAY}\nB. Here.",
            )
        ),
    ],
    ids=str,
)
def test_what_belongs_to_the_question_follows_it(row: dict[str, Any], asked: str) -> None:
    example = read(row)
    assert turns(example) == [("user", asked), ("assistant", SAY)]
    assert example.not_read == ()


def test_an_answer_that_counts_a_choice_is_its_letter() -> None:
    row = {"question": ASK, "choices": ["Rome", "Turin"], "answer": 1}
    assert turns(read(row))[1] == ("assistant", "B")
    with pytest.raises(RowError, match="the answer is 2, but there are 2 choices from 0"):
        read({**row, "answer": 2})
    with pytest.raises(RowError, match="the answer should be text, found a number"):
        read({**row, "choices": []})


@pytest.mark.parametrize(
    "history", [[["Hi", "Hello"]], [{"user": 1}], '[["Hi", "Hello"]]'], ids=str
)
@pytest.mark.parametrize("names", [("instruction", "output"), ("query", "response")])
def test_the_history_is_earlier_turns(names: tuple[str, str], history: Any) -> None:
    row = {names[0]: ASK, names[1]: SAY, "system_prompt": "Be brief.", "history": history}
    if history == [{"user": 1}]:
        with pytest.raises(RowError, match="message 0 has no role"):
            read(row)
        return
    assert turns(read(row)) == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", ASK),
        ("assistant", SAY),
    ]


@pytest.mark.parametrize("answers", [CALLS, json.dumps(CALLS)], ids=str)
def test_answers_that_are_calls(answers: Any) -> None:
    """xLAM."""
    example = read({"query": ASK, "answers": answers, "tools": json.dumps([TOOL])})
    (call,) = example.messages[1].tool_calls or ()
    assert call["function"] == CALLS[0]
    assert example.tools == [TOOL]
    assert example.not_read == ()


def test_functions_are_tools() -> None:
    example = read({"messages": [USER, BOT], "functions": [TOOL]})
    assert example.tools == [{"type": "function", "function": TOOL}]
    assert example.not_read == ()


def test_an_attempt_has_its_thought() -> None:
    """s1K."""
    row = {
        "question": ASK,
        "solution": "Turin",
        "thinking_trajectories": ["A mole."],
        "attempt": SAY,
    }
    example = read({**row, "text": f"user {ASK} assistant {SAY}"})
    assert turns(example) == [("user", ASK), ("assistant", SAY)]
    assert example.messages[1].extra == {"reasoning_content": "A mole."}
    assert example.not_read == ()


def test_the_last_branch_of_an_export() -> None:
    def node(parent: str | None, role: str, *parts: Any, **metadata: Any) -> dict[str, Any]:
        content = {"content_type": "text", "parts": list(parts)}
        return {
            "parent": parent,
            "message": {"author": {"role": role}, "content": content, "metadata": metadata},
        }

    nodes = {
        "s": node(None, "system", ""),
        "h": node("s", "user", "unseen", is_visually_hidden_from_conversation=True),
        "u": node("h", "user", ASK),
        "a": node("u", "assistant", SAY),
    }
    row = {"mapping": nodes, "current_node": "a", "title": "x"}
    assert turns(read(row)) == [("user", ASK), ("assistant", SAY)]
    assert read(row).not_read == ()
    nodes["b"] = node("u", "assistant", "No idea.")
    assert turns(read(row)) == [("user", ASK), ("assistant", SAY)]
    assert read(row).not_read == ("mapping",)
    nodes["u"] = node("h", "user", {"asset_pointer": "x"}, ASK)
    with pytest.raises(RowError, match="only text can be scored"):
        read(row)
    with pytest.raises(RowError, match="the conversation is empty"):
        read({"mapping": {"a": {"parent": "a"}}, "current_node": "a"})


def test_a_transcript_with_its_system_prompt_and_a_tool() -> None:
    """Glaive."""
    chat = f"USER: {ASK}\n\n\nASSISTANT: <functioncall> f <|endoftext|>\n\n\n"
    chat += "FUNCTION RESPONSE: t\n\n\n"
    example = read(
        {"system": "SYSTEM: Be brief.\n", "chat": f"{chat}ASSISTANT: {SAY} <|endoftext|>"}
    )
    assert turns(example) == [
        ("system", "Be brief."),
        ("user", ASK),
        ("assistant", "<functioncall> f"),
        ("tool", "t"),
        ("assistant", SAY),
    ]
    assert example.not_read == ()
    with pytest.raises(RowError, match="should begin with a speaker"):
        read({"chat": "Hello there"})


@pytest.mark.parametrize("value", ["text", "list"])
def test_what_both_preferences_begin_with_is_the_prompt(value: str) -> None:
    def spoken(*messages: dict[str, str]) -> Any:
        names = {"user": "Human", "assistant": "Assistant"}
        text = "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in messages)
        return text if value == "text" else list(messages)

    row = {"chosen": spoken(USER, BOT, USER, BOT), "rejected": spoken(USER, BOT, USER, WORSE)}
    example = read(row)
    assert [m.trained for m in example.messages] == [None, False, None, None]
    assert example.not_read == ("rejected",)


def test_a_turn_and_its_answer_in_one_item_keep_the_rest() -> None:
    """XTuner."""
    item = {"input": ASK, "output": SAY, "thinking": "A mole."}
    example = read({"conversation": [{"system": "Be brief.", **item}, {**item, "system": ""}]})
    pair = [("user", ASK), ("assistant", SAY)]
    assert turns(example) == [("system", "Be brief."), *pair, *pair]
    assert [m.extra for m in example.messages][2::2] == [{"thinking": "A mole."}] * 2
    with pytest.raises(RowError, match="a turn has a text 'context' beside 'input' and 'output'"):
        read({"conversation": [{**item, "context": "A tower."}]})


def test_a_chosen_conversation_repeats_the_messages() -> None:
    row = {"messages": [{"role": "system", "content": "A"}, USER], "chosen": [USER, BOT]}
    assert [r for r, _ in turns(read(row))] == ["system", "user", "assistant"]
    kim = {"messages": [USER], "chosen": [{"role": "kim", "content": SAY}]}
    assert turns(infer_format([kim], {}, {"kim": "assistant"})(kim))[1] == ("assistant", SAY)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": ["q1", "q2"], "completion": ["a1", "a2"]}, "prompt is a list of texts"),
        ({"prompt": [USER], "completion": ["a1", "a2"]}, "completion is a list of texts"),
        ({"prompt": ASK, "completion": None}, "the completion is empty"),
        ({"prompt": ASK, "completion": 3}, "the completion should be text, found a number"),
        ({"prompt": 3, "completion": SAY}, "the prompt should be text, found a number"),
    ],
)
def test_what_is_no_prompt_and_completion(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        read(row)


def test_an_export_keeps_thoughts_and_names_what_else_it_holds() -> None:
    def node(parent: str, role: str, **content: Any) -> dict[str, Any]:
        return {"parent": parent, "message": {"author": {"role": role}, "content": content}}

    thoughts = [{"summary": "s", "content": "A mole."}, {"summary": "A tower.", "content": ""}]
    nodes = {
        "u": node("", "user", parts=[ASK]),
        "t": node("u", "assistant", content_type="thoughts", thoughts=thoughts),
        "a": node("t", "assistant", parts=[SAY]),
    }
    row = {"mapping": nodes, "current_node": "a"}
    assert turns(read(row)) == [("user", ASK), ("assistant", SAY)]
    assert read(row).messages[1].extra == {"reasoning_content": "A mole.\n\nA tower."}
    assert read(row).not_read == ()
    nodes["b"] = node("a", "assistant", content_type="reasoning_recap", content="9 s")
    assert read({**row, "current_node": "b"}).not_read == ("mapping",)


# --- what is no target, no text, or not read ---


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASK, "completion": SAY},
        {"messages": [USER, BOT]},
        {"instruction": ASK, "output": SAY},
        {"question": ASK, "answer": SAY},
    ],
    ids=str,
)
def test_rows_whose_label_is_false_are_no_targets(row: dict[str, Any]) -> None:
    """KTO."""
    assert read({**row, "label": True}).not_read == ()
    for label in (False, "False", "false"):
        for name in ("label", "kto_tag"):
            with pytest.raises(RowError, match="label is false"):
                read({**row, name: label})


def test_a_label_of_something_else_is_named() -> None:
    for row in ({"question": ASK, "answer": SAY}, {"prompt": ASK, "completion": SAY}):
        assert read({**row, "label": 0}).not_read == ("label",)
    assert read({"text": SAY, "label": 0}).not_read == ()


@pytest.mark.parametrize("name", ["images", "Image", "videos", "video", "audios", "audio"])
def test_a_row_with_more_than_text_is_rejected(name: str) -> None:
    row = {"messages": [USER, BOT]}
    for empty in (None, [], ""):
        assert read({**row, name: empty}).not_read == ()
    with pytest.raises(RowError, match=f"column '{name}', and only text can be scored"):
        read({**row, name: ["a.jpg"]})
    assert read({"text": SAY, name: "a.jpg"}).not_read == (name,)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"messages": [USER, BOT], "rejected": [USER, WORSE]}, ["rejected"]),
        ({"messages": [USER, BOT], "chosen": [USER, BOT], "prompt": ASK}, []),
        ({"messages": [USER, BOT], "chat_template_kwargs": {"enable_thinking": True}}, []),
        ({"text": SAY, "chat_template_kwargs": {"a": True}}, ["chat_template_kwargs"]),
        ({"prompt": ASK, "completion": SAY, "chat_template_kwargs": {}}, []),
        ({"prompt": [USER], "completion": SAY, "system": "A"}, []),
        ({"messages": [{"role": "system", "content": "A"}, USER, BOT], "system": "A"}, []),
        ({"messages": [{"role": "system", "content": "A"}, USER, BOT], "System": "B"}, ["System"]),
        ({"messages": [USER, BOT], "context": "A tower."}, ["context"]),
        ({"messages": [USER, BOT], "parent_id": "m1"}, ["parent_id"]),
        ({"question": ASK, "answer": SAY, "Complex_CoT": "A mole."}, ["Complex_CoT"]),
        ({"question": ASK, "answer": SAY, "solution": "In Piedmont."}, ["answer"]),
        ({"question": "A notable tower?", "answer": SAY, "response": "no"}, ["response"]),
        ({"question": "Is it? No or yes?", "answer": SAY, "response": "No"}, []),
        ({"question": "yes?", "answer": SAY, "final_decision": "yes"}, ["final_decision"]),
        ({"messages": [USER, BOT], "final_decision": None}, []),
        ({"question": ASK, "answers": [SAY, "Turin"]}, ["answers"]),
        ({"question": ASK, "answer": SAY, "context": {"title": ["A"]}}, ["context"]),
        ({"question": ASK, "answer": SAY, "choices": 3.5, "tools": "a saw"}, ["tools"]),
        ({"question": ASK, "answer": SAY, "options": [[1], "b"]}, ["options"]),
        ({"question": ASK, "answer": SAY, "instruction": "Be brief."}, ["instruction"]),
        ({"prompt": ASK, "completion": SAY, "context": "A tower."}, ["context"]),
        ({"text": SAY, "parent_id": "m1"}, ["parent_id"]),
        ({"question": ASK, "answer": SAY, "input": "", "tools": "[]", "source": "x"}, []),
        ({"input_ids": [1, 2], "labels": [1, 2], "system": "A"}, []),
    ],
    ids=str,
)
def test_what_is_not_read_is_named_as_the_data_does(row: dict[str, Any], named: list[str]) -> None:
    assert list(read(row).not_read) == named


@pytest.mark.parametrize("value", [{"a": [1], "b": None}, '{"a": [1], "b": null}'])
def test_values_for_the_template_come_with_the_row(value: object) -> None:
    example = read({"messages": [USER, BOT], "chat_template_kwargs": value})
    assert example.template_arg == {"a": [1], "b": None}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("thinking", "chat_template_kwargs is not JSON"),
        ([1], "chat_template_kwargs should be an object, found a list"),
        ({"tools": []}, "chat_template_kwargs cannot set 'tools'"),
        ({"a": "x" * 10_000}, "chat_template_kwargs has more than 10,000 characters"),
        ({"a": "\ud83d"}, "chat_template_kwargs holds invalid Unicode"),
    ],
)
def test_other_values_for_the_template_reject_the_row(value: object, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        read({"messages": [USER, BOT], "chat_template_kwargs": value})


def test_a_column_is_read_where_its_words_stand_in_the_prompt() -> None:
    draw, outcomes = random.Random(0), set[bool]()
    for _ in range(500):
        prompt, words = ("".join(draw.choices("ab _ä", k=k)) for k in (7, draw.randint(1, 3)))
        asked = [{"role": "user", "content": f"q {prompt}"}, {"role": "assistant", "content": "x"}]
        found = read({"messages": asked, "context": words}).not_read
        whole = rf"(?<![a-zA-Z0-9_]){re.escape(words.strip())}(?![a-zA-Z0-9_])"
        is_read = not words.strip() or re.search(whole, f"q {prompt}") is not None
        assert found == (() if is_read else ("context",)), (prompt, words)
        outcomes.add(is_read)
    assert outcomes == {True, False}
