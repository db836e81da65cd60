"""The prompt is what a scan finds before the answer, and a written answer reads back as its ids."""

import json
from typing import Any

import pytest
import templates_made as made
import tokenizers_made

from eaft_probe.data.formats import RowFormat
from eaft_probe.data.prompts import Prompts, json_line
from eaft_probe.data.rendering.render import Renderer, RenderOptions
from eaft_probe.data.rendering.rendered import Rendered
from eaft_probe.errors import RowError

ENDS = {
    "CHATML": "<|im_end|>",
    "MARKED": "<|im_end|>",
    "DEFAULT_SYSTEM": "<|im_end|>",
    "LLAMA3": "<|eot_id|>",
    "MISTRAL": "</s>",
    "GLM": "<|user|>",
    "GEMMA": "<end_of_turn>",
    "QWEN3": "<|im_end|>",
    "QWEN25": "<|im_end|>",
    "MISTRAL_TOOLS": "</s>",
}
ASKED = [
    {"role": "user", "content": "Hello there, how are you?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "What is 2+2?"},
]
TOKENIZERS = {
    "byte-level": tokenizers_made.byte_level,
    "metaspace": tokenizers_made.metaspace,
}
# Opens the reasoning itself, and shows it again in a finished answer.
THINKING = made.CHATML.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'")


def prompts(template: str | None, kind: str = "byte-level", **options: Any) -> Prompts:
    return Prompts(Renderer(TOKENIZERS[kind](template), RenderOptions(**options)))


def ids_of(found: Prompts, text: str) -> list[int]:
    return list(found.tokenizer(text, add_special_tokens=False)["input_ids"])


def read(found: Prompts, row: Any, name: str = "messages") -> Rendered:
    return found.renderer(RowFormat(name)(json.loads(json_line(row))))


def row(messages: list[Any], **more: Any) -> dict[str, Any]:
    return {"messages": messages, **more}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", [*ENDS, None])
def test_prompt_and_answer_are_what_a_scan_scores(template: str | None, kind: str) -> None:
    found = prompts(getattr(made, template) if template else None, kind)
    answer = {"role": "assistant", "content": "It is 4. Hello world,  hello!\n\nNo."}
    shown = read(found, row([*ASKED, answer]))
    prompt = found(RowFormat("messages")(row([*ASKED, answer])))
    lead = "<think>\n\n</think>\n\n" if template == "QWEN3" else ""
    space = " " if template and template.startswith("MISTRAL") else ""
    sampled = shown.ids[len(prompt.ids) :].tolist()
    assert shown.ids[: len(prompt.ids)].tolist() == list(prompt.ids)
    stop = next(i for i in sampled if i in found.stops())
    sampled = sampled[: sampled.index(stop)]
    written, reads_back = found.row(prompt, sampled, stop)
    assert written["messages"][-1]["content"] == lead + answer["content"]
    if lead:  # the template dropped the empty thought: it is not among the trained tokens
        return
    assert reads_back == "same"
    rendered = read(found, written)
    end = ENDS[template] if template else "</s>"
    assert stop == found.tokenizer.convert_tokens_to_ids(end)
    assert rendered.ids[rendered.trained].tolist() == [*sampled, stop]
    assert rendered.text[: len(prompt.text) + len(space)] == prompt.text + space


def test_a_prompt_that_the_template_forgets_is_none() -> None:
    with pytest.raises(RowError, match="does not show message 0"):
        prompts(made.FORGETFUL)(RowFormat("messages")(row(ASKED)))


def test_the_end_of_turn_of_every_kind_stops_an_answer() -> None:
    stops = {
        "GLM": {"</s>", "<|user|>"},
        "CHATML": {"</s>", "<|im_end|>"},
        "MISTRAL": {"</s>"},
        "NEXT_ROLE": {"</s>", "<|user|>", "<|observation|>"},
        "CALL_CLOSER": {"</s>", "<|end|>", "<|call|>", "<|return|>"},
        "WITHIN": {"</s>", "<turn|>", "<|tool_response>"},
    }
    for name, tokens in stops.items():
        found = Prompts(Renderer(tokenizers_made.more_tokens(getattr(made, name))))
        assert {found.tokenizer.convert_ids_to_tokens(i) for i in found.stops()} == tokens


def test_the_earlier_answers_are_given_not_the_models() -> None:
    found = prompts(made.CHATML)
    written, _ = found.row(found(RowFormat("messages")(row(ASKED))), ids_of(found, "4."), None)
    assert [m.get("train") for m in written["messages"]] == [None, False, None, None]
    rendered = read(found, written)
    assert "".join(map(found.renderer.token_text, rendered.ids[rendered.trained])) == "4.<|im_end|>"


def test_a_rows_values_for_the_template_are_written_with_the_answer() -> None:
    found = prompts(made.MOODY)
    prompt = found(RowFormat("messages")(row(ASKED, chat_template_kwargs={"mood": "calm"})))
    assert prompt.text.startswith("Be calm.")
    written, reads_back = found.row(prompt, ids_of(found, "4."), None)
    assert written["chat_template_kwargs"] == {"mood": "calm"}
    assert reads_back == "same"


def test_a_conversation_is_cut_before_its_last_answer() -> None:
    found, system = prompts(made.QWEN25), {"role": "system", "content": "Hello."}
    call = {"name": "get_weather", "arguments": {"city": "Paris"}}
    calls = [{"type": "function", "function": call}]
    called = [
        system,
        ASKED[0],
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "sunny", "name": "get_weather"},
    ]
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
    for more in ([], [{"role": "assistant", "content": "It is sunny."}]):
        prompt = found(RowFormat("messages")(row([*called, *more], tools=tools)))
        assert "get_weather" in prompt.text
        assert prompt.text.endswith("sunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
        written, reads_back = found.row(prompt, ids_of(found, "It is."), None)
        assert reads_back == "same"
        assert written["tools"] == tools
        assert written["messages"][:2] == called[:2]
        assert written["messages"][2] == {**called[2], "train": False}
        assert written["messages"][3:] == [called[3], {"role": "assistant", "content": "It is."}]


def test_inline_tool_calls_are_written_as_they_came() -> None:
    found = prompts(made.CHATML, tool_calls="inline")
    tools = [{"name": "get_weather"}]
    prompt = found(RowFormat("messages")(row(ASKED, tools=tools)))
    assert '<|im_start|>system\n{"name": "get_weather"}' in prompt.text
    written, reads_back = found.row(prompt, ids_of(found, "sunny"), None)
    assert (reads_back, written["tools"], len(written["messages"])) == ("same", tools, 4)


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, True)])
@pytest.mark.parametrize("template", [None, made.CHATML])
def test_plain_pairs_stay_plain_pairs(template: str | None, bos: bool, eos: bool) -> None:
    found = Prompts(Renderer(tokenizers_made.byte_level(template, bos=bos, eos=eos)))
    for system, before in ({}, "What is 2+2?\n"), ({"system": "Hello."}, "Hello.\nWhat is 2+2?\n"):
        given = {**system, "prompt": "What is 2+2?", "completion": "five"}
        prompt = found(RowFormat("prompt-completion")(given))
        assert prompt.text == before
        assert list(prompt.ids) == [
            *([found.tokenizer.bos_token_id] if bos else []),
            *_alone(found, before),
        ]
        end = found.tokenizer.eos_token_id
        written, reads_back = found.row(prompt, _alone(found, "It is 4."), end)
        assert reads_back == "same"
        assert written == {**system, "prompt": "What is 2+2?", "completion": "It is 4."}


def _alone(found: Prompts, text: str) -> list[int]:
    return [i for i in ids_of(found, text) if i not in found.tokenizer.all_special_ids]


def test_reasoning_that_the_template_opens_belongs_to_the_answer() -> None:
    found = prompts(THINKING)
    prompt = found(RowFormat("messages")(row(ASKED)))
    assert prompt.text.endswith("<|im_start|>assistant\n<think>\n")
    assert prompt.lead == "<think>\n"
    written, _ = found.row(prompt, ids_of(found, "two\n</think>\n\n4."), None)
    assert written["messages"][-1]["content"] == "<think>\ntwo\n</think>\n\n4."


def test_what_reads_back_otherwise_is_told() -> None:
    found = prompts(made.CHATML)
    prompt = found(RowFormat("messages")(row(ASKED)))
    stop = found.tokenizer.convert_tokens_to_ids("<|im_end|>")
    merged = ids_of(found, "Hello")
    letters = [i for letter in "Hello" for i in ids_of(found, letter)]
    assert merged != letters
    assert found.row(prompt, merged, stop)[1] == "same"
    assert found.row(prompt, letters, stop)[1] == "other"
    assert found.row(prompt, merged, found.tokenizer.eos_token_id)[1] == "other"
    assert found.row(prompt, [], stop)[1] == "empty"
    assert found.row(prompt, ids_of(found, " \n"), None)[1] == "empty"
    broken = [found.tokenizer.convert_tokens_to_ids("Ã")]  # the byte C3, half a character
    assert found.row(prompt, broken, stop)[1] == "other"


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("text", {"text": "The quick brown fox."}),
        ("messages", row([{"role": "system", "content": "x"}])),
        ("messages", row([{"role": "assistant", "content": "x"}])),
        ("labelled", {"input_ids": [5, 6], "labels": [5, 6]}),
    ],
)
def test_rows_without_a_prompt(name: str, given: dict[str, Any]) -> None:
    with pytest.raises(RowError, match="no prompt"):
        prompts(made.CHATML)(RowFormat(name)(given))


def test_a_row_that_the_template_refuses() -> None:
    with pytest.raises(RowError, match="refuses"):
        prompts(made.GEMMA)(
            RowFormat("messages")(row([{"role": "system", "content": "x"}, ASKED[0]]))
        )


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", [*ENDS, None])
def test_the_end_of_turn_behind_a_cut_answer_is_untrained(template: str | None, kind: str) -> None:
    found = prompts(getattr(made, template) if template else None, kind)
    answer = {"role": "assistant", "content": "It is 4. No"}
    whole, cut = (read(found, row([*ASKED, answer], finish=f)) for f in ("stop", "length"))
    scored = whole.ids[whole.trained].tolist()
    assert cut.ids[cut.trained].tolist() == scored[:-1]
    # What a template leaves open is closed in the whole answer alone.
    assert cut.ids.tolist() == whole.ids.tolist()[: len(whole.ids) - whole.closed]
    assert whole.closed == (template == "GLM")
    assert cut.closed == 0
