"""`export --for axolotl|ms-swift|llamafactory`: stored rows of the formats, and their own readers.

The readers are found in the folder EAFT_PROBE_TRAINERS, filled by the command in docs/export.md.
"""

import importlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer

from eaft_probe import Scan, export, scan
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput, ScanError
from eaft_probe.verbs.export.messages import conversation
from eaft_probe.verbs.export.renderings import Rendering

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]

# --- stored rows ---


def rendering(text: str, messages: list[Row], pieces: list[tuple[str, int, float]]) -> Rendering:
    """`pieces`: (text of a token, its message, its gate), found one behind the other."""
    starts, at = [], 0
    for piece, *_ in pieces:
        at = text.index(piece, at)
        starts.append(at)
        at += len(piece) if piece != "🦊" else 0  # a character of several tokens
    ends = [s + len(p[0]) for s, p in zip(starts, pieces, strict=True)]
    tokens = {
        "position": np.arange(len(pieces), dtype=np.int32),
        "token_id": np.zeros(len(pieces), np.int32),
        "turn": np.array([turn for _, turn, _ in pieces], np.int16),
        "char_start": np.array(starts, np.int32),
        "char_end": np.array(ends, np.int32),
    }
    gates = np.array([gate for *_, gate in pieces], np.float32)
    return Rendering(0, None, text, json.dumps(messages), 99, tokens, gates, gates > -1)


QUESTION = {"role": "user", "content": "say <b>"}
ANSWER = {"role": "assistant", "content": "  a cat sat\n"}
SHOWN = "U say <b> E A a cat sat E"  # the template strips contents
MASKED = [(" a", 1, 1), (" cat", 1, 0), (" sat", 1, 1), (" E", 1, 1)]
WEIGHTED = [(" a", 1, 0.5), (" cat", 1, 0.25), (" sat", 1, 0.25), (" E", 1, 1)]


def written(made: Rendering, trainer: str, tools: Any = None) -> tuple[list[Row], list[str]]:
    lost = Counter[str]()
    rows = list(conversation(made, tools, trainer, lost))
    return rows, [f"{n} {what.format(s='s' * (n != 1))}" for what, n in (+lost).items()]


def test_a_mask_for_axolotl() -> None:
    rows, lost = written(rendering(SHOWN, [QUESTION, ANSWER], MASKED), "axolotl", [{"name": "f"}])
    spans = [(0, 2, True), (3, 6, False), (7, 11, True)]
    detail = [{"begin_offset": a, "end_offset": b, "train": t} for a, b, t in spans]
    answer = {**ANSWER, "train": True, "train_detail": detail}
    messages = [{**QUESTION, "train": False}, answer]
    assert rows == [{"messages": messages, "tools": [{"name": "f"}]}]
    assert not lost


def test_weights_for_ms_swift() -> None:
    made = rendering(SHOWN, [QUESTION, ANSWER], WEIGHTED)
    rows, lost = written(made, "ms-swift", [{"name": "f"}])
    pieces = [("  a", 0.5), (" cat sat\n", 0.25)]
    answers = [{"role": "assistant", "content": c, "loss_scale": w} for c, w in pieces]
    assert rows == [{"messages": [QUESTION, *answers], "tools": '[{"name": "f"}]'}]
    assert not lost


def test_weights_for_llamafactory() -> None:
    rows, lost = written(rendering(SHOWN, [QUESTION, ANSWER], WEIGHTED), "llamafactory")
    parts = [[{"type": "text", "value": m["content"]}] for m in (QUESTION, ANSWER)]
    assert rows[0]["messages"] == [
        {"role": "user", "content": parts[0], "loss_weight": 0.0},
        {"role": "assistant", "content": parts[1], "loss_weight": 0.5},
    ]
    assert lost == ["1 message whose gate varies, written as its mean"]


def test_calls_and_thoughts() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    answer = {**ANSWER, "content": "hm", "reasoning_content": "hm", "tool_calls": [call]}
    pieces = [("hm", 1, 1), ("T", 1, 0), ("hm", 1, 0), ("F", 1, 1), ("E", 1, 1)]
    made = rendering("A hm T hm F E", [QUESTION, answer], pieces)
    rows, lost = written(made, "axolotl")
    detail = [{"begin_offset": 0, "end_offset": 1, "train": False}]
    assert rows[0]["messages"][1] == {**answer, "train": True, "train_detail": detail}
    assert lost == [
        "1 token of reasoning or headers that the trainer does not train so",
        "2 tokens of tool calls that the trainer does not train so",
    ]
    rows, lost = written(made, "ms-swift")
    bare = {k: v for k, v in answer.items() if k != "reasoning_content"}
    assert rows[0]["messages"][1] == {**bare, "loss_scale": 0.0}
    assert lost[0] == "1 message with reasoning, which ms-swift reads only inside the content"
    rows, _ = written(made, "llamafactory")
    assert rows[0]["messages"][1]["content"] == [
        {"type": "reasoning", "value": "hm"},
        {"type": "text", "value": "hm"},
        {"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
    ]


@pytest.mark.parametrize(
    ("text", "pieces", "trainer", "said"),
    [
        (SHOWN, [*MASKED[:3], (" E", 1, 0)], "axolotl", ["1 end of a turn"]),
        (SHOWN, [*WEIGHTED[:3], (" E", 1, 0.5)], "ms-swift", ["1 end of a turn"]),
        ("A A CAT SAT E", [(" A", 1, 1), (" CAT", 1, 0)], "axolotl", ["1 message whose content"]),
        (SHOWN, [(" say", 0, 1), (" a cat", 1, 1)], "ms-swift", ["1 message of other roles"]),
        (SHOWN, [(" a", 1, 0)], "ms-swift", ["1 conversation without a token"]),
        (SHOWN, [(" a", 1, -1), (" cat sat", 1, 1)], "ms-swift", ["1 token with a weight below 0"]),
    ],
)
def test_what_a_format_cannot_say_is_counted(
    text: str, pieces: list[tuple[str, int, float]], trainer: str, said: list[str]
) -> None:
    _, lost = written(rendering(text, [QUESTION, ANSWER], pieces), trainer)
    assert len(lost) == len(said)
    assert all(line.startswith(start) for line, start in zip(lost, said, strict=True)), lost


def test_a_character_of_several_tokens_has_one_gate() -> None:
    pieces = [("a", 1, 1), ("🦊", 1, 0), ("🦊", 1, 1), ("b", 1, 1)]
    made = rendering("A a🦊b E", [QUESTION, {**ANSWER, "content": "a🦊b"}], pieces)
    rows, lost = written(made, "ms-swift")
    assert [m["loss_scale"] for m in rows[0]["messages"][1:]] == [1, 0, 1]
    assert lost == ["1 part of a character whose other parts have another gate"]


def test_what_was_cut_is_not_trained() -> None:
    made = rendering(SHOWN, [QUESTION, ANSWER], [(" a", 1, 1), (" cat", 1, 1)])
    detail = written(made, "axolotl")[0][0]["messages"][1]["train_detail"]
    assert [(d["begin_offset"], d["end_offset"], d["train"]) for d in detail] == [
        (0, 6, True),
        (7, 11, False),
    ]


def test_a_trained_header_that_may_be_the_content_is_not_taken_for_it() -> None:
    answer = {"role": "assistant", "content": "is"}
    pieces = [("<assistant>", 1, 0), ("is", 1, 1), (" E", 1, 1)]
    made = rendering("U say <b> <assistant>is E", [QUESTION, answer], pieces)
    made.tokens["char_start"][1:2], made.tokens["char_end"][1:2] = 21, 23
    rows, lost = written(made, "axolotl")
    assert "train_detail" not in rows[0]["messages"][1]
    assert any("content the chat template changes or repeats" in line for line in lost)
    alone = rendering("U say <b> <assistant>is isE", [QUESTION, answer], pieces[1:2])
    alone.tokens["char_start"][:], alone.tokens["char_end"][:] = 21, 23
    assert not written(alone, "axolotl")[1]


def test_damaged_messages_are_one_line() -> None:
    made = rendering(SHOWN, [{"role": "user", "content": 3}], MASKED)
    with pytest.raises(ScanError, match="the messages of example 0 cannot be read"):
        written(made, "axolotl")


# --- their own readers ---

SAID = "Once upon a time there was a fox. It did not mind the dog at all, and the dog slept. "


@pytest.fixture(scope="module")
def finished(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    folder = tmp_path_factory.mktemp("scan")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {n}"},
                {"role": "assistant", "content": SAID[: 20 + 9 * n], "train": n != 3},
                {"role": "user", "content": "and"},
                {"role": "assistant", "content": f"more {n} of it"},
            ]
        }
        for n in range(6)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = scan(str(folder / "rows.jsonl"), folder / "s", model=model_folder)
    entropy, prob = made.tokens(["entropy", "prob"]).median()
    return made.flag(ConflictRule(float(entropy), float(prob)))


@pytest.fixture(scope="module")
def trainers() -> Iterator[None]:
    folder = os.environ.get("EAFT_PROBE_TRAINERS")
    if not folder:
        pytest.skip("EAFT_PROBE_TRAINERS names no folder with the trainers; see docs/export.md")
    before = [*sys.path]
    sys.path.insert(0, folder)
    yield
    sys.path[:] = before


def exported(finished: Scan, folder: Path, trainer: str, **settings: Any) -> list[Row]:
    path = folder / f"{trainer}.jsonl"
    export(finished, path, for_=trainer, **settings)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def end_of(finished: Scan, tokenizer: Any) -> int:
    return int(tokenizer.convert_tokens_to_ids("<|im_end|>"))


@pytest.mark.filterwarnings("ignore")
def test_axolotl_s_own_reader(
    finished: Scan, trainers: None, model_folder: str, tmp_path: Path
) -> None:
    """With the settings of docs/export.md: the labels are those of the tokens, and the ends of
    trained turns."""
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    blocks = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    (settings,) = (d for b in blocks for d in b.get("datasets", ()) if d["type"] == "chat_template")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    make = importlib.import_module("axolotl.utils.dict").DictDefault
    load = importlib.import_module("axolotl.prompt_strategies.chat_template").load
    config = {"sequence_len": 1024, "train_on_inputs": False}
    eot = settings.pop("eot_tokens")
    reader = load(tokenizer, make({**config, "eot_tokens": eot}), make(settings))
    tokens = exported(finished, tmp_path, "tokens", masked=True)
    end = end_of(finished, tokenizer)
    for n, (row, wanted) in enumerate(
        zip(exported(finished, tmp_path, "axolotl", masked=True), tokens, strict=True)
    ):
        read = reader.tokenize_prompt(row)
        assert read["input_ids"] == wanted["input_ids"]
        ends = [i for i, t in enumerate(read["input_ids"]) if t == end][1::2]
        labels = list(wanted["labels"])
        for at in ends[1:] if n == 3 else ends:
            labels[at] = end
        assert read["labels"] == labels


def by_character(tokenizer: Any, ids: list[int], values: list[float]) -> tuple[str, list[float]]:
    texts = [tokenizer.decode([i]) for i in ids]
    pairs = zip(texts, values, strict=True)
    return "".join(texts), [value for text, value in pairs for _ in text]


@pytest.mark.filterwarnings("ignore")
def test_ms_swift_s_own_reader(
    finished: Scan, trainers: None, model_folder: str, tmp_path: Path
) -> None:
    """Character by character the weights of the tokens, but for the ends of turns."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.model_info = SimpleNamespace(task_type="causal_lm", max_model_len=1024, config=None)
    tokenizer.model_meta = SimpleNamespace(is_multimodal=False)
    meta = importlib.import_module("swift.template.template_meta").TemplateMeta(
        "chatml",
        prefix=[],
        prompt=["<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n"],
        chat_sep=["<|im_end|>\n"],
        suffix=["<|im_end|>"],
    )
    kind = importlib.import_module("swift.template.base").Template
    template = kind(tokenizer, meta, max_length=1024, is_binary_loss_scale=False)
    template.set_mode("train")
    given = {"masked": True, "objective": "eaft"}
    tokens = exported(finished, tmp_path, "tokens", **given)
    for row, wanted in zip(exported(finished, tmp_path, "ms-swift", **given), tokens, strict=True):
        read = template.encode(row)
        text, weights = by_character(tokenizer, read["input_ids"], read["loss_scale"])
        whole, theirs = by_character(tokenizer, wanted["input_ids"], wanted["weights"])
        assert text == whole.removesuffix("\n")
        ends = [range(*m.span()) for m in re.finditer(r"<\|im_end\|>", text)]
        inside = [i for i in range(len(text)) if not any(i in end for end in ends)]
        np.testing.assert_allclose([weights[i] for i in inside], [theirs[i] for i in inside])
        assert sum(w > 0 for w in weights) > 10
        labels = [i for i, label in enumerate(read["labels"]) if label != -100]
        assert labels == [i for i, w in enumerate(read["loss_scale"]) if w > 0]


@pytest.mark.filterwarnings("ignore")
def test_llamafactory_s_own_reader(
    finished: Scan, trainers: None, model_folder: str, tmp_path: Path
) -> None:
    """Each message has the mean gate of its trained tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    exported(finished, tmp_path, "llamafactory", objective="dft")
    render = importlib.import_module("llamafactory.v1.core.utils.rendering").Renderer
    engine = importlib.import_module("llamafactory.v1.core.data_engine").DataEngine
    samples = engine(str(tmp_path / "llamafactory.jsonl"))
    tokens = finished.tokens(["example", "turn", "prob"])
    means = tokens.groupby(["example", "turn"])["prob"].mean()
    end = end_of(finished, tokenizer)
    for n in range(6):
        read = render("chatml", tokenizer).render_messages(samples[n]["messages"])
        ends = [i for i, t in enumerate(read["input_ids"]) if t == end]
        weights = [read["loss_weights"][i] for i in ends]
        wanted = [means.get((n, turn), 0.0) for turn in range(4)]
        assert weights == pytest.approx(wanted, rel=1e-5)
        trained = [label != -100 for label in read["labels"]]
        assert trained == [w > 1e-6 for w in read["loss_weights"]]


def test_what_is_not_in_the_file_is_not_called_trained(finished: Scan, tmp_path: Path) -> None:
    nothing = {"objective": "profit", "set": {"threshold": 1}}
    for trainer in ("ms-swift", "tokens"):
        done = export(finished, tmp_path / f"{trainer}.jsonl", for_=trainer, **nothing)
        assert done.trained_tokens == 0
        assert f"0 of {done.scored_tokens} tokens are trained" in str(done)


def test_rows_without_messages_are_refused(model_folder: str, tmp_path: Path) -> None:
    rows = [{"text": "a fox"}]
    made = scan(rows, tmp_path / "s", model=model_folder)
    with pytest.raises(BadInput, match="are of format 'text'; use --for tokens"):
        export(made, tmp_path / "o.jsonl", for_="axolotl", data=rows)
    pairs: list[Any] = [{"prompt": "a", "completion": "fox"}]
    pairs.append({"prompt": [QUESTION], "completion": "a fox", "chat_template_kwargs": {"a": 1}})
    made = scan(pairs, tmp_path / "p", model=model_folder)
    done = export(made, tmp_path / "o.jsonl", for_="axolotl", data=pairs)
    assert "1 row of plain text, which the trainer puts into its chat template" in done.notes()[0]
    assert "1 row with chat_template_kwargs, which the trainer does not get" in done.notes()[0]
