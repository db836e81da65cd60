"""Examples as tokens: plain text, options, tokens against characters, tokens as text."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import templates_made as templates
from renderings_made import (
    CHAT,
    TOOL,
    TOOL_CHAT,
    called,
    check,
    rendered,
    runs,
    runs_of_text,
    said,
    system,
    tool,
    trained,
    user,
)
from tokenizers_made import byte_level, metaspace, more_tokens

from eaft_probe.data.formats import Example
from eaft_probe.data.rendering.render import MOST_LOCATORS, Renderer, RenderOptions
from eaft_probe.errors import BadInput, ModelError, RowError

MAKERS = {"byte_level": byte_level, "metaspace": metaspace}


# --- tokens against characters ---


def test_a_token_that_reaches_an_answer_from_white_space_is_the_answers() -> None:
    # Byte-level " hello" is one token with the header's space, metaspace "▁hello" likewise.
    chat = (user("Hi"), said("hello there"))
    for maker in MAKERS.values():
        for template in (templates.MISTRAL, templates.SPOKEN):
            made = rendered(template, *chat, maker=maker)
            assert runs_of_text(made) == [" hello there</s>"]
            assert made.text.count(" hello there</s>") == 1


def test_new_lines_merged_over_the_boundary_belong_to_the_answer() -> None:
    tokenizer = byte_level(templates.CHATML)
    made = Renderer(tokenizer)(Example("", (user("Hi"), said("\n A"))))
    at = made.text.index("\n A")
    assert ((made.chars[:, 0] < at) & (made.chars[:, 1] > at)).any()  # "\n\n" is a token
    assert runs(tokenizer, made) == ["\n\n A<|im_end|>"]


def test_a_token_that_begins_with_text_of_the_header_is_not_trained() -> None:
    template = templates.CHATML.replace("'\\n' + m.content", "' promp' + m.content")
    template = template.replace("assistant\\n", "assistant promp")
    made = rendered(template, user("Hi"), said("t A"))
    at = made.text.rindex("t A")
    token = next(t for t in made.chars.tolist() if t[0] < at < t[1])
    assert made.text[slice(*token)].strip() == "prompt"
    assert runs_of_text(made) == [" A<|im_end|>"]


@pytest.mark.parametrize("maker", MAKERS)
def test_halves_of_a_character_are_trained_with_it(maker: str) -> None:
    tokenizer = MAKERS[maker](templates.CHATML)
    answer = "🙈é🙈"
    made = Renderer(tokenizer)(Example("", (user(answer), said(answer))))
    check(made)
    assert runs(tokenizer, made) == [answer + "<|im_end|>"]
    at = made.text.rindex(answer)
    inside = (made.chars[:, 0] >= at) & (made.chars[:, 0] < at + len(answer))
    assert made.trained[inside].all()
    assert inside.sum() > 5


def test_the_padding_token_is_trained_where_it_ends_a_turn() -> None:
    tokenizer = byte_level(templates.CHATML, eos_token="<|im_end|>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    made = Renderer(tokenizer)(Example("", CHAT))
    closing = made.trained & (made.ids == tokenizer.pad_token_id)
    assert closing.sum() == 2


def test_a_tokenizer_that_was_told_to_cut_or_pad_does_neither() -> None:
    tokenizer = byte_level(templates.CHATML)
    whole = Renderer(tokenizer)(Example("", CHAT))
    for how in ({"truncation": True, "max_length": 4}, {"padding": "max_length", "max_length": 99}):
        tokenizer("Hello there, how are you today?", **how)
        assert Renderer(tokenizer)(Example("", CHAT)).ids.tolist() == whole.ids.tolist()


# --- plain text and prompts ---


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("text", ["Hello there", "Hello there</s>", "<s>Hello there"])
def test_plain_text_has_one_beginning_and_one_trained_end(text: str, bos: bool, eos: bool) -> None:
    tokenizer = byte_level(templates.CHATML, bos=bos, eos=eos)
    made = Renderer(tokenizer)(Example("", (said(text),), plain=True))
    check(made)
    assert runs_of_text(made)[0].endswith("Hello there</s>")
    assert (made.ids == tokenizer.eos_token_id).sum() == 1
    assert made.trained[made.ids == tokenizer.eos_token_id].all()
    begins = bos or text.startswith("<s>")
    assert (made.ids == tokenizer.bos_token_id).sum() == begins
    assert made.ids[0] == tokenizer.bos_token_id or not begins
    assert made.plain


@pytest.mark.parametrize("template", [None, templates.CHATML])
@pytest.mark.parametrize("completion", ["Yes.", "Yes.</s>"])
@pytest.mark.parametrize("bos", [False, True])
def test_a_prompt_and_its_completion(template: str | None, completion: str, bos: bool) -> None:
    tokenizer = byte_level(template, bos=bos)
    made = Renderer(tokenizer)(Example("", (user("Hi"), said(completion)), plain=True))
    check(made)
    assert made.text == "Hi\nYes.</s>"
    assert runs(tokenizer, made) == ["Yes.</s>"]


def test_an_end_of_text_within_the_text_is_text() -> None:
    made = Renderer(byte_level(None))(Example("", (said("Hello</s> there"),), plain=True))
    assert runs_of_text(made) == ["Hello</s> there</s>"]
    assert made.special_in_content == 1


def test_a_conversation_without_a_template_stands_on_lines() -> None:
    assert trained(None, *CHAT) == ["It is 4.</s>", "Two.</s>"]
    made = rendered(None, user("Hi"), said("A.", reasoning_content="one"), tools=[TOOL])
    assert made.left_out["assistant.reasoning_content"] == 3
    assert made.left_out["tools"] > 0


def test_metaspace_plain_text() -> None:
    tokenizer = metaspace()
    made = Renderer(tokenizer)(Example("", (said("Hello there"),), plain=True))
    check(made)
    assert [t.strip() for t in runs(tokenizer, made)] == ["Hello there</s>"]
    assert made.ids[0] == tokenizer.bos_token_id


def test_templates_write_their_own_beginning_of_text() -> None:
    tokenizer = byte_level(templates.MISTRAL, bos=True)
    made = Renderer(tokenizer)(Example("", CHAT))
    assert (made.ids == tokenizer.bos_token_id).sum() == 1


# --- labelled ---


def test_labelled_ids_are_taken_as_they_are() -> None:
    tokenizer = byte_level(None)
    ids = tokenizer("Hello world")["input_ids"]
    labels = [-100, *ids[1:]]
    made = Renderer(tokenizer)(Example("k", (), labelled=(ids, labels)))
    check(made)
    assert made.ids.tolist() == ids
    assert made.trained.tolist() == [label != -100 for label in labels]
    assert made.text == "Hello world"
    assert made.key == "k"


@pytest.mark.parametrize("bad", [-1, 10**6, 2**40])
def test_labelled_ids_outside_the_vocabulary_are_rejected(bad: int) -> None:
    with pytest.raises(RowError, match=str(bad)):
        Renderer(byte_level(None))(Example("", (), labelled=([1, bad], [1, bad])))


@pytest.mark.parametrize("ids", [[], [5], [5, 6]])
def test_labelled_ids_with_nothing_to_predict_are_rejected(ids: list[int]) -> None:
    with pytest.raises(RowError, match="no trained token"):
        Renderer(byte_level(None))(Example("", (), labelled=(ids, [*ids[:1], -100][: len(ids)])))


# --- tokens as text ---


def texts(tokenizer: Any, text: str) -> list[str]:
    renderer = Renderer(tokenizer)
    return [renderer.token_text(i) for i in tokenizer(text)["input_ids"]]


def joined(pieces: Iterable[str]) -> str:
    return "".join(pieces)


def test_byte_level_tokens_as_text() -> None:
    pieces = texts(byte_level(None), "Hello world<|im_end|>\n")
    assert joined(pieces) == "Hello world<|im_end|>\n"
    assert "<|im_end|>" in pieces
    assert any(p.startswith(" w") for p in pieces)
    assert joined(texts(byte_level(None), "🙈")) == "\\xf0\\x9f\\x99\\x88"


def test_metaspace_tokens_as_text() -> None:
    pieces = texts(metaspace(None, bos=False), "hello world")
    assert joined(pieces) == " hello world"
    assert joined(texts(metaspace(None, bos=False), "é")) == " \\xc3\\xa9"


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    # Models pad their vocabulary: 151,936 rows for 151,665 tokens.
    assert Renderer(byte_level(None)).token_text(10**5) == ""


@pytest.mark.parametrize("template", [None, templates.CHATML, templates.LLAMA3, templates.GLM])
def test_offsets_and_token_texts_agree_on_ascii(template: str | None) -> None:
    renderer = Renderer(byte_level(template))
    made = renderer(Example("", CHAT))
    for token, (start, end) in zip(made.ids, made.chars, strict=True):
        assert made.text[start:end] == renderer.token_text(token)


def test_offsets_of_a_trimming_tokenizer_own_the_space() -> None:
    renderer = Renderer(byte_level(templates.CHATML, bos=True))
    made = renderer(Example("", (user("Hi"), said("one two three"))))
    assert joined(made.text[a:b] for a, b in made.chars) == made.text


def test_a_cut_keeps_everything_in_step() -> None:
    made = Renderer(byte_level(templates.CHATML))(Example("", CHAT)).cut(7)
    assert [len(a) for a in (made.ids, made.trained, made.turn, made.chars)] == [7] * 4


def test_a_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(ModelError, match="offsets"):
        Renderer(object())


# --- templates by name, in a file, with arguments ---


def test_of_several_templates_the_default_is_taken() -> None:
    tokenizer = byte_level(None)
    tokenizer.chat_template = {"default": templates.CHATML, "rag": templates.LLAMA3}
    made = Renderer(tokenizer)(Example("", CHAT))
    assert runs(tokenizer, made) == ["It is 4.<|im_end|>", "Two.<|im_end|>"]
    tokenizer.chat_template = {"rag": templates.LLAMA3}
    with pytest.raises(ModelError, match="rag"):
        Renderer(tokenizer)


def test_the_template_for_tools_is_taken_row_by_row() -> None:
    tokenizer = byte_level(None)
    tokenizer.chat_template = {"default": templates.LLAMA3, "tool_use": templates.QWEN25}
    renderer = Renderer(tokenizer)
    for example, start in (
        (Example("", CHAT), "<|begin_of_text|>"),
        (Example("", CHAT, tools=[TOOL]), "<|im_start|>system"),
        (Example("", TOOL_CHAT), "<|im_start|>user"),
        (Example("", CHAT), "<|begin_of_text|>"),
    ):
        assert renderer(example).text.startswith(start)


def test_a_row_with_calls_behind_many_without() -> None:
    renderer = Renderer(byte_level(templates.CHATML))
    for _ in range(5):
        assert renderer(Example("", CHAT)).trained.any()
    with pytest.raises(RowError, match="--tool-calls inline"):
        renderer(Example("", TOOL_CHAT))
    assert renderer(Example("", CHAT)).trained.any()
    renderer = Renderer(byte_level(templates.QWEN25))
    shown = [renderer(Example("", c)).text for c in (CHAT, TOOL_CHAT, CHAT)]
    assert shown[0] == shown[2]
    assert "get_weather" in shown[1]


def test_a_template_in_a_file_replaces_the_tokenizers(tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(templates.LLAMA3)
    options = RenderOptions(chat_template=str(file))
    for own in (None, templates.CHATML, {"default": templates.CHATML, "tool_use": templates.GLM}):
        tokenizer = byte_level(None)
        tokenizer.chat_template = own
        made = Renderer(tokenizer, options)(Example("", CHAT))
        assert runs_of_text(made) == ["It is 4.<|eot_id|>", "Two.<|eot_id|>"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read --chat-template .*No such file"),
        (b"{% for m in messages %}", "--chat-template .*t.jinja, line 1: Unexpected end"),
        (b"a\n{{ m. }}", "--chat-template .*t.jinja, line 2: "),
        (b"\xff\xfe", "cannot read --chat-template .*decode"),
    ],
)
def test_a_file_that_is_no_template(content: bytes | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadInput, match=reason) as caught:
        Renderer(byte_level(None), RenderOptions(chat_template=str(file)))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_whose_template_is_none_says_so() -> None:
    with pytest.raises(ModelError, match="chat template") as caught:
        Renderer(byte_level("{% for m in messages %}"))(Example("", CHAT))
    assert "\n" not in str(caught.value)


def test_arguments_reach_the_template() -> None:
    made = rendered(templates.MOODY, *CHAT, template_arg={"mood": "kind"})
    assert made.text.startswith("Be kind.\n<|im_start|>user")
    assert rendered(templates.MOODY, *CHAT).text.startswith("<|im_start|>user")


def test_a_rows_own_arguments_come_before_those_of_all_rows() -> None:
    renderer = Renderer(byte_level(templates.MOODY), RenderOptions(template_arg={"mood": "kind"}))
    for values in ({"mood": "calm"}, {"mood": "", "more": {"a": [1]}}, {"tone": "x"}):
        made = renderer(Example("", CHAT, template_arg=values))
        theirs = {"mood": "kind"} | values
        chat = [m.as_dict() for m in CHAT]
        assert made.text == renderer.tokenizer.apply_chat_template(chat, tokenize=False, **theirs)
        check(made)


def test_arguments_of_many_rows_are_not_all_remembered() -> None:
    renderer = Renderer(byte_level(templates.MOODY))
    for i in range(40):
        made = renderer(Example("", CHAT, template_arg={"mood": f"{i}"}))
        assert made.text.startswith(f"Be {i}.\n<|im_start|>user")
    assert len(renderer._locators) == MOST_LOCATORS
    assert renderer(Example("", CHAT)).text.startswith("<|im_start|>user")


def test_the_day_that_a_template_is_told_is_fixed() -> None:
    made = rendered(templates.DATED, *CHAT, today="2024-02-29")
    assert made.text.startswith("Today: 29 Feb 2024\n")
    assert runs_of_text(made) == ["It is 4.<|im_end|>", "Two.<|im_end|>"]


# --- each turn in a rendering of its own ---


def each(template: str | None, *messages: Any, **how: Any) -> list[Any]:
    options = RenderOptions(turns="each", **how)
    found = Renderer(more_tokens(template), options).renderings(Example("", messages))
    for made in found:
        check(made)
    return found


LONG = (
    system("Be brief."),
    user("Hi"),
    said("A.", reasoning_content="one"),
    user("So?"),
    said("B.", reasoning_content="two"),
    *TOOL_CHAT,
    user("And Rome?"),
    called("", "Rome", reasoning_content="three"),
    tool("rainy"),
    said("Rainy."),
)


@pytest.mark.parametrize(
    "template",
    [
        templates.THOUGHTS,
        templates.OPENS_THOUGHT,
        templates.QWEN25,
        templates.NEXT_ROLE,
        templates.CALL_CLOSER,
        templates.WITHIN,
    ],
)
def test_each_turn_is_what_rendering_its_prefix_alone_is(template: str) -> None:
    found = each(template, *LONG)
    turns = [i for i, m in enumerate(LONG) if m.role == "assistant"]
    assert [made.of_turn for made in found] == turns
    renderer = Renderer(more_tokens(template), RenderOptions(train_on="last"))
    for turn, made in zip(turns, found, strict=True):
        alone = renderer(Example("", LONG[: turn + 1]))
        assert made.text == alone.text
        assert made.ids.tolist() == alone.ids.tolist()
        assert made.trained.tolist() == alone.trained.tolist()
        assert set(made.turn[made.trained]) == {turn}


def test_each_turn_has_the_thoughts_that_history_drops() -> None:
    found = [runs_of_text(made) for made in each(templates.THOUGHTS, *LONG[:5])]
    assert found == [
        ["<think>\none\n</think>\n\nA.<|im_end|>"],
        ["<think>\ntwo\n</think>\n\nB.<|im_end|>"],
    ]


def test_each_turn_of_those_that_are_trained() -> None:
    chat = (CHAT[0], said("It is 4.", trained=False), *CHAT[2:])
    assert [made.of_turn for made in each(templates.CHATML, *chat)] == [3]
    assert [made.of_turn for made in each(templates.CHATML, *CHAT, train_on="last")] == [3]
    assert [made.of_turn for made in each(templates.CHATML, *CHAT, train_on="all")] == [0, 1, 2, 3]


def test_each_turn_that_cannot_be_rendered_is_left_out_of_the_others() -> None:
    chat = (user("Hi"), said("A."), tool("sunny"), said("B."))
    (made,) = each(templates.THREE_ROLES, *chat)
    assert made.of_turn == 1
    with pytest.raises(RowError, match="does not show message 0"):
        each(templates.THREE_ROLES, tool("sunny"), said("B."))


def test_each_turn_without_a_template() -> None:
    renderer = Renderer(byte_level(templates.CHATML), RenderOptions(turns="each"))
    (made,) = renderer.renderings(Example("", (user("Hi"), said("Yes.")), plain=True))
    assert (made.of_turn, runs_of_text(made)) == (1, ["Yes.</s>"])
    assert [(made.of_turn, runs_of_text(made)) for made in each(None, *CHAT)] == [
        (1, ["It is 4.</s>"]),
        (3, ["Two.</s>"]),
    ]
    (made,) = renderer.renderings(Example("", (), labelled=([5, 6, 7], [-100, 6, 7])))
    assert made.of_turn == 0


def test_together_is_of_no_turn() -> None:
    (made,) = Renderer(byte_level(templates.CHATML)).renderings(Example("", CHAT))
    assert made.of_turn is None
