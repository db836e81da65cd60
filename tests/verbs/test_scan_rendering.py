"""How the settings of rendering reach a scan: turns, template, date, an adapter's tokenizer."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from eaft_probe import Scan, scan
from eaft_probe.analysis.summary import summarize
from eaft_probe.cli import _run
from eaft_probe.errors import BadInput
from eaft_probe.verbs.merge.merge import merge
from eaft_probe.verbs.scan import plan as planning
from eaft_probe.verbs.train.train import train

WORDS = "the cat sat on a mat and then it ran over hills".split()  # noqa: SIM905
# Shows the last thought alone, as templates of reasoning models do.
FORGETS = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}\
{%- if m.reasoning_content and loop.last %}{{ '<think>' + m.reasoning_content + '</think>' }}\
{%- endif %}{{ m.content + '<|im_end|>\\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
DATED = "{{ strftime_now('%d %b %Y') }}\n" + tiny.CHAT_TEMPLATE


def row(number: int, turns: int, thinks: bool = False) -> dict[str, Any]:
    messages = list[dict[str, str]]()
    for turn in range(turns):
        words = WORDS[(number + turn) % 5 :]
        thought = {"reasoning_content": f"then {words[0]}"} if thinks else {}
        messages += [
            {"role": "user", "content": f"tell me {words[0]} {number}"},
            {"role": "assistant", "content": " ".join(words), **thought},
        ]
    return {"messages": messages}


@pytest.fixture
def template(tmp_path: Path) -> Callable[[str], str]:
    def written(source: str) -> str:
        (tmp_path / "chat.jinja").write_text(source)
        return str(tmp_path / "chat.jinja")

    return written


PLACE = ["example", "turn", "token_id"]


def test_each_turn_has_the_numbers_of_its_history_alone(
    tmp_path: Path, model_folder: str, template: Callable[[str], str]
) -> None:
    rows = [row(n, 1 + n % 3, thinks=True) for n in range(9)]
    how = {"model": model_folder, "chat_template": template(FORGETS)}
    each = scan(rows, tmp_path / "each", turns="each", **how)
    turns = [(n, t) for n, r in enumerate(rows) for t in range(1, len(r["messages"]), 2)]
    examples = each.examples()
    assert list(zip(examples["example"], examples["turn"], strict=True)) == turns
    alone = [{"messages": rows[n]["messages"][: t + 1]} for n, t in turns]
    last = scan(alone, tmp_path / "alone", train_on="last", **how)
    assert list(examples["text"]) == list(last.examples()["text"])
    mine, theirs = each.tokens(), last.tokens()
    assert (mine["token_id"] == theirs["token_id"]).all()
    assert (mine["position"] == theirs["position"]).all()
    assert np.abs(mine["logprob"] - theirs["logprob"]).max() < 1e-4
    assert each.manifest["counts"]["left_out"] == {
        "assistant.reasoning_content": sum(
            len(m["reasoning_content"]) for a in alone for m in a["messages"][1:-1:2]
        )
    }
    together = scan(rows, tmp_path / "together", **how)
    assert together.manifest["counts"]["trained_tokens"] < each.manifest["counts"]["trained_tokens"]
    assert together.examples()["turn"].isna().all()


def test_each_turn_of_an_unchanged_history_is_the_whole_conversations(
    tmp_path: Path, model_folder: str
) -> None:
    rows = [row(n, 3) for n in range(6)]
    each = scan(rows, tmp_path / "each", model=model_folder, turns="each")
    together = scan(rows, tmp_path / "together", model=model_folder)
    a, b = (s.tokens([*PLACE, "position", "logprob"]) for s in (each, together))
    assert (a[[*PLACE, "position"]] == b[[*PLACE, "position"]]).all(axis=None)
    assert np.abs(a["logprob"] - b["logprob"]).max() < 1e-4
    counts = each.manifest["counts"]
    assert (counts["examples"], counts["renderings"]) == (6, 18)


def test_training_takes_the_same_turns(tmp_path: Path, model_folder: str) -> None:
    rows = [row(n, 2) for n in range(8)]
    base = scan(rows, tmp_path / "base", model=model_folder, turns="each")
    run = {"model": model_folder, "max_steps": 1, "objective": "stm", "logging_steps": 1}
    done = train(rows, tmp_path / "run", turns="each", mask=str(base.path), **run)
    assert done.log[-1]["nll"] == pytest.approx(-base.tokens()["logprob"].mean(), abs=1)
    with pytest.raises(BadInput, match="--turns"):
        train(rows, tmp_path / "other", mask=str(base.path), **run)


def test_what_is_not_shown_is_counted_and_said(
    tmp_path: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(row(0, 1, thinks=True)))
    out = str(tmp_path / "s")
    assert _run(["scan", str(data), "--model", model_folder, "--out", out]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The chat template does not show 8 characters of assistant.reasoning_content" in said
    assert summarize(Scan.open(out))["left_out"] == {"assistant.reasoning_content": 8}


def test_what_is_not_read_and_what_is_rejected_is_summed(
    tmp_path: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"role": "caller", "content": "call"}
    answers = ["the cat", None, "", "a dog", "a dog"]
    rows = [
        {"messages": [asked, {"role": "agent", "content": a}], "rejected": "no"} for a in answers
    ]
    rows[4]["messages"] = [asked, {"role": "wizard", "content": "x"}]
    roles = ["--roles", "agent=assistant,caller=user", "--model", model_folder]
    for name, part in {"a": rows[:3], "b": rows[3:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
        out = str(tmp_path / name)
        assert _run(["scan", str(tmp_path / f"{name}.jsonl"), "--out", out, *roles]) == 0
    assert (
        _run(["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "m")]) == 0
    )
    capsys.readouterr()
    assert _run(["show", str(tmp_path / "m")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 rows rejected, see rejected.jsonl 1 row: message 1 has no content" in said
    assert "Columns of the prompt or the answer that are not read: rejected (2 rows)." in said
    summary = summarize(Scan.open(tmp_path / "m"))
    assert summary["not_read"] == {"rejected": 2}
    assert summary["rejected_reasons"] == {
        "message 1 has no content": 1,
        "the answer is empty": 1,
        "message 1 has an unknown role 'wizard'; say what it is, for example --roles "
        "wizard=assistant": 1,
    }
    assert _run(["render", str(tmp_path / "a.jsonl"), *roles]) == 0
    assert "columns not read: rejected" in capsys.readouterr().out
    assert _run(["render", str(tmp_path / "a.jsonl"), *roles[2:], "--roles", "agent=bot"]) == 2
    assert "--roles agent=bot: unknown role 'bot'; use one of system," in capsys.readouterr().err


def test_rows_with_calls_end_no_scan(tmp_path: Path, model_folder: str) -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    asked = {"role": "user", "content": "call"}
    late = {"messages": [asked, {"role": "assistant", "content": "", "tool_calls": calls}]}
    done = scan([row(0, 1), row(1, 1), late], tmp_path / "s", model=model_folder)
    (line,) = (tmp_path / "s" / "rejected.jsonl").read_text().splitlines()
    rejected = json.loads(line)
    assert rejected.keys() == {"row", "file", "line", "reason"}
    assert rejected["row"] == 2
    assert "--tool-calls inline" in rejected["reason"]
    assert done.manifest["counts"]["examples"] == 2


def test_two_days_give_one_scan(
    tmp_path: Path,
    model_folder: str,
    template: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Day(date):
        @classmethod
        def today(cls) -> "Day":
            return cls(2026, 2, 3)

    how = {"model": model_folder, "chat_template": template(DATED)}
    first = scan([row(0, 1)], tmp_path / "s", today="2026-01-31", **how)
    assert first.examples()["text"][0].startswith("31 Jan 2026\n")
    monkeypatch.setattr(planning, "date", Day)
    again = scan([row(0, 1)], tmp_path / "s", **how)
    assert again.manifest == first.manifest
    other = scan([row(0, 1)], tmp_path / "t", **how)
    assert other.examples()["text"][0].startswith("03 Feb 2026\n")
    with pytest.raises(BadInput, match="--today must be a date"):
        scan([row(0, 1)], tmp_path / "u", today="yesterday", **how)
    next_row = scan([row(1, 1)], tmp_path / "v", today="2026-01-31", **how)
    with pytest.raises(BadInput, match=r"--today \(2026-01-31 and 2026-02-03\)"):
        merge([next_row, other], tmp_path / "m")
    merged = merge([first, next_row], tmp_path / "m")
    assert json.loads((merged.path / "plan.json").read_text())["today"] == "2026-01-31"


def test_the_template_and_what_it_is_given(
    tmp_path: Path, model_folder: str, template: Callable[[str], str]
) -> None:
    told = template("{% if loud %}LOUD {% endif %}" + tiny.CHAT_TEMPLATE)
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(row(0, 1)))
    common = ["scan", str(data), "--model", model_folder, "--chat-template", told]
    for value, start in (("true", "LOUD <|im_start|>"), ("false", "<|im_start|>")):
        out = str(tmp_path / value)
        assert _run([*common, "--out", out, "--template-arg", f"loud={value}"]) == 0
        assert Scan.open(out).examples()["text"][0].startswith(start)
    assert _run([*common, "--out", str(tmp_path / "true")]) == 2  # made with another argument


@pytest.mark.parametrize("source", [None, "{% for %}"])
def test_a_template_that_is_none(
    source: str | None, tmp_path: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.jinja"
    if source:
        file.write_text(source)
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(row(0, 1)))
    found = _run(
        [
            "scan",
            str(data),
            "--model",
            model_folder,
            "--chat-template",
            str(file),
            "--out",
            str(tmp_path / "s"),
        ]
    )
    assert found == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--chat-template" in line
    assert not (tmp_path / "s").exists()


def test_an_adapter_brings_its_tokenizer(tmp_path: Path, model_folder: str) -> None:
    """New tokens with their rows of the embedding, and a template of its own."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = tiny.tokenizer(tiny.CHAT_TEMPLATE.replace("<|im_start|>", "<|turn|>"))
    tokenizer.add_tokens(["<|turn|>"], special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    how = {"model": model_folder, "adapter": str(tmp_path / "adapter")}
    done = scan([row(0, 1)], tmp_path / "s", **how)
    assert done.examples()["text"][0].startswith("<|turn|>user")
    assert done.manifest["model"]["vocab_size"] == len(tokenizer)
    (tmp_path / "adapter" / "tokenizer_config.json").write_text(
        (tmp_path / "adapter" / "tokenizer_config.json").read_text() + " "
    )
    with pytest.raises(BadInput, match="adapter_files"):  # another tokenizer is another scan
        scan([row(0, 1)], tmp_path / "s", **how)


def test_render_as_json(
    tmp_path: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(0, 2, thinks=True) | {"id": "a"}, {"messages": [{"role": "user", "content": "x"}]}]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, [*rows, *[row(n, 1) for n in range(7)]])))
    common = ["render", str(data), "--model", model_folder, "--json"]
    assert _run(common) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 9  # all of them
    first = lines[0]
    names = {"row", "key", "text", "trained", "tokens", "trained_tokens", "left_out", "not_read"}
    assert first.keys() == names
    assert first["not_read"] == []
    answers = [m["content"] + "<|im_end|>" for m in rows[0]["messages"][1::2]]
    assert [first["text"][a:b] for a, b in first["trained"]] == answers
    assert (first["row"], first["key"]) == (0, "a")
    assert first["left_out"] == {"assistant.reasoning_content": 16}
    assert lines[1] == {"row": 1, "key": "1", "rejected": "no trained message"}
    assert _run([*common, "--turns", "each", "--limit", "1"]) == 0
    each = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["turn"] for e in each] == [1, 3]
    assert [e["text"][a:b] for e in each for a, b in e["trained"]] == answers
