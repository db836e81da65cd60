"""A rollout end to end, and a scan of it under the model that gave the answers."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from filelock import FileLock

from eaft_probe import Scan, rollout, scan
from eaft_probe.cli import _run
from eaft_probe.errors import BadInput, DataError, ProbeError, ScanError
from eaft_probe.model.sampling import Answer, Generator
from eaft_probe.verbs.rollout.files import RolloutFiles

CLOSER = "<|im_end|>"
ROWS: list[dict[str, Any]] = [
    {
        "id": f"row-{n}",
        "messages": [
            *([{"role": "system", "content": "You count. " * 9}] if n % 2 else []),
            *([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "1"}] * (n % 3)),
            {"role": "user", "content": f"Count to {'ten ' * (n % 5)}{n}"},
            {"role": "assistant", "content": "no"},
        ],
    }
    for n in range(11)
]
SETTINGS: dict[str, Any] = {"max_new_tokens": 12, "rows_per_unit": 4, "batch_size": 6}


@pytest.fixture(scope="session")
def counting(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model that says digits, which no tokenizer merges, and at times ends its turn."""
    folder, tokenizer = tmp_path_factory.mktemp("counting"), tiny.tokenizer()
    model = tiny.build("phi", max_position_embeddings=512)
    said = tokenizer.convert_tokens_to_ids([*"0123456789", CLOSER])
    with torch.no_grad():
        model.lm_head.bias.fill_(-1e4)
        model.lm_head.bias[said] = 0.0
    model.save_pretrained(folder)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """Every answer that is sampled, in the order of the lines."""
    seen: list[Answer] = []
    real = Generator.sample

    def spy(self: Generator, *given: Any) -> Any:
        answers = real(self, *given)
        seen.extend(a for own in answers for a in own)
        return answers

    monkeypatch.setattr(Generator, "sample", spy)
    return seen


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open()]


def scored(done: Scan) -> dict[int, list[int]]:
    tokens = done.tokens(["example", "token_id"])
    return {int(e): list(ids) for e, ids in tokens.groupby("example")["token_id"]}


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"n": 3, "temperature": 1.5}])
def test_a_scan_scores_exactly_the_sampled_tokens(
    tmp_path: Path, counting: str, sampled: list[Answer], settings: dict[str, Any]
) -> None:
    done = rollout(
        ROWS,
        tmp_path / "r.jsonl",
        model=counting,
        then_scan=str(tmp_path / "scan"),
        **SETTINGS,
        **settings,
    )
    assert done.scan is not None
    n = settings.get("n", 1)
    assert (done.rows, done.prompts, done.answers) == (11, 11, 11 * n) == (11, 11, len(sampled))
    assert (done.empty, done.retokenized, done.rejected) == (sum(not a.ids for a in sampled), 0, 0)
    assert done.tokens == sum(a.tokens for a in sampled)
    assert 0 < done.cut == sum(a.stop is None for a in sampled) < done.answers
    found, closer = scored(done.scan), tiny.tokenizer().convert_tokens_to_ids(CLOSER)
    for example, answer in enumerate(sampled):
        if answer.ids:  # the end of turn behind an answer that was cut is nobody's word
            ends = [closer] if answer.stop is not None else []
            assert found.pop(example) == [*answer.ids, *ends]
    assert not found
    if n == 1:
        tokens = done.scan.tokens()
        assert (tokens["rank"] == 0).all()
        assert len(tokens) == sum(a.tokens for a in sampled if a.ids)


def test_greedy_answers_of_a_real_model_have_rank_0(
    tmp_path: Path, shared: Path, stories: str
) -> None:
    """Exceptions are told: answers that read back as other tokens, and ends that nobody sampled."""
    done = rollout(
        shared / "data/gsm8k/test.jsonl",
        tmp_path / "r.jsonl",
        model=stories,
        limit=40,
        temperature=0,
        max_new_tokens=24,
        then_scan=str(tmp_path / "s"),
    )
    assert done.scan is not None
    tokens = done.scan.tokens()
    last = tokens.groupby("example")["position"].transform("max") == tokens["position"]
    other = tokens[~last & (tokens["rank"] > 0)]["example"].nunique()
    assert other <= done.retokenized <= 4
    assert done.cut == 40  # it never ends a story in 24 tokens


def test_the_lines(tmp_path: Path, counting: str, sampled: list[Answer]) -> None:
    done = rollout(ROWS, tmp_path / "r.jsonl", model=counting, n=2, sample=5, seed=1, **SETTINGS)
    written = lines(tmp_path / "r.jsonl")
    rows = sorted({w["row"] for w in written})
    assert len(rows) == 5
    assert rows != list(range(5))
    assert [w["row"] for w in written] == [r for r in rows for _ in range(2)]
    tokenizer = tiny.tokenizer()
    for number, (line, answer) in enumerate(zip(written, sampled, strict=True)):
        given = ROWS[line["row"]]
        about = ["row", "key", "sample", "finish", "retokenized", "temperature", "top_p"]
        assert list(line) == [*about, "messages"]
        assert (line["key"], line["sample"]) == (given["id"], number % 2)
        assert line["finish"] == ("length" if answer.stop is None else "stop")
        assert line["messages"][-1] == {
            "role": "assistant",
            "content": tokenizer.decode(answer.ids),
        }
        plain = [{k: v for k, v in m.items() if k != "train"} for m in line["messages"][:-1]]
        assert plain == given["messages"][:-1]
    assert {p.name for p in tmp_path.iterdir()} == {"r.jsonl", "r.jsonl.plan"}
    assert str(done).splitlines()[0] == (
        f"10 answers to 5 prompts, {done.tokens} tokens, in {tmp_path / 'r.jsonl'}"
    )
    assert (done.cut, str(done).splitlines()[1]) == (1, "1 answer cut at --max-new-tokens")


def test_strings_stay_strings(tmp_path: Path, counting: str, sampled: list[Answer]) -> None:
    rows = [{"prompt": f"Count: {n}", "completion": "x"} for n in range(5)]
    rollout(rows, tmp_path / "r.jsonl", model=counting, then_scan=str(tmp_path / "s"), **SETTINGS)
    assert [w["prompt"] for w in lines(tmp_path / "r.jsonl")] == [r["prompt"] for r in rows]
    found = scored(Scan.open(tmp_path / "s"))
    for example, answer in enumerate(sampled):
        if answer.ids:
            assert found[example][: len(answer.ids)] == list(answer.ids)


def test_the_answers_row_and_sample_reach_the_scan(tmp_path: Path, counting: str) -> None:
    done = rollout(
        ROWS,
        tmp_path / "r.jsonl",
        model=counting,
        n=2,
        temperature=0.9,
        then_scan=str(tmp_path / "s"),
        **SETTINGS,
    )
    assert done.scan is not None
    examples, written = done.scan.examples(), lines(tmp_path / "r.jsonl")
    for example in examples.itertuples():
        line = written[example.example]
        assert (example.row, example.sample) == (str(line["row"]), str(line["sample"]))
        assert (example.finish, example.key) == (line["finish"], line["key"])


def test_units_draw_from_numbers_of_their_own(tmp_path: Path, counting: str) -> None:
    same = [{"messages": [{"role": "user", "content": "Count"}]}] * 4
    settings = SETTINGS | {"rows_per_unit": 1}
    rollout(same, tmp_path / "r.jsonl", model=counting, temperature=2, **settings)
    assert len({w["messages"][1]["content"] for w in lines(tmp_path / "r.jsonl")}) == 4


def test_answers_that_read_back_otherwise_are_marked(
    tmp_path: Path, model_folder: str, sampled: list[Answer]
) -> None:
    """A random model says every byte, and half a character cannot be written."""
    done = rollout(
        ROWS,
        tmp_path / "r.jsonl",
        model=model_folder,
        then_scan=str(tmp_path / "s"),
        **SETTINGS | {"max_new_tokens": 3},
    )
    written = lines(tmp_path / "r.jsonl")
    assert done.retokenized == sum(w["retokenized"] for w in written) > 0
    assert done.scan is not None
    found = scored(done.scan)
    for example, (line, answer) in enumerate(zip(written, sampled, strict=True)):
        if answer.ids and not line["retokenized"]:
            assert found[example][: len(answer.ids)] == list(answer.ids)
    kept = done.scan.examples().set_index("example")["retokenized"]
    assert all(kept[e] == json.dumps(written[e]["retokenized"]) for e in kept.index)


class Stop:
    """Progress that interrupts after some rows, as Ctrl-C would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def start(self, what: str, rows: int) -> None: ...

    def note(self, text: str) -> None: ...

    def advance(self, rows: int, tokens: int) -> None:
        self.left -= rows
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [0, 4, 9])
def test_an_interrupted_rollout_goes_on_byte_for_byte(
    tmp_path: Path, counting: str, after: int
) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    rollout(ROWS, whole, model=counting, n=2, **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        rollout(ROWS, cut, model=counting, n=2, **SETTINGS, progress=Stop(after))
    assert not cut.exists()
    if after:
        with pytest.raises(ScanError, match="temperature"):
            rollout(ROWS, cut, model=counting, n=2, temperature=2, **SETTINGS)
    rollout(ROWS, cut, model=counting, n=2, **SETTINGS)
    assert cut.read_bytes() == whole.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {
        "whole.jsonl",
        "whole.jsonl.plan",
        "cut.jsonl",
        "cut.jsonl.plan",
    }


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded again")

    return lambda: monkeypatch.setattr("eaft_probe.verbs.rollout.rollout.load_model", refuse)


def test_a_finished_rollout_is_left_alone(
    tmp_path: Path, counting: str, no_model: Callable[[], None]
) -> None:
    out = tmp_path / "r.jsonl"
    first = rollout(ROWS, out, model=counting, **SETTINGS)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.iterdir()}
    no_model()
    assert rollout(ROWS, out, model=counting, **SETTINGS) == first
    for other in ({"seed": 1}, {"n": 2}, {"top_p": 0.5}, {"batch_size": 5}):
        with pytest.raises(ScanError, match=next(iter(other))) as error:
            rollout(ROWS, out, **{"model": counting, **SETTINGS, **other})
        assert "--overwrite" in str(error.value)
    with pytest.raises(ScanError, match=r"data\.fingerprint"):
        rollout(ROWS[1:], out, model=counting, **SETTINGS)
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.iterdir()}


def test_a_join_that_was_cut_short_needs_no_model(
    tmp_path: Path, counting: str, no_model: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "r.jsonl"
    monkeypatch.setattr("eaft_probe.verbs.rollout.files.shutil.copyfileobj", full)
    with pytest.raises(ProbeError, match="No space left"):
        rollout(ROWS, out, model=counting, **SETTINGS)
    assert not out.exists()
    monkeypatch.undo()
    no_model()
    assert rollout(ROWS, out, model=counting, **SETTINGS).answers == len(lines(out)) == 11


def test_overwrite_replaces_a_rollout_and_nothing_else(tmp_path: Path, counting: str) -> None:
    out = tmp_path / "r.jsonl"
    rollout(ROWS, out, model=counting, **SETTINGS)
    with pytest.raises(BadInput):  # a typo must not cost the old one
        rollout(ROWS, out, model=counting, overwrite=True, dtype="float8", **SETTINGS)
    assert len(lines(out)) == 11
    rollout(ROWS[:3], out, model=counting, overwrite=True, n=2, **SETTINGS)
    assert len(lines(out)) == 6
    precious = tmp_path / "mine.jsonl"
    precious.write_text('{"thesis": 1}\n')
    for overwrite in (False, True):
        with pytest.raises(ScanError, match="is no rollout"):
            rollout(ROWS, precious, model=counting, overwrite=overwrite, **SETTINGS)
    assert precious.read_text() == '{"thesis": 1}\n'


def test_a_file_that_another_run_is_writing_is_refused(tmp_path: Path, counting: str) -> None:
    out = tmp_path / "r.jsonl"
    with FileLock(tmp_path / "r.jsonl.lock"):
        with pytest.raises(BadInput, match="is in use by another run; wait for it"):
            rollout(ROWS, out, model=counting, **SETTINGS)
        with pytest.raises(BadInput, match="is in use by another run"):
            RolloutFiles(out).alone(print).__enter__()  # where both began at once
    first = rollout(ROWS, out, model=counting, **SETTINGS)
    assert {p.name for p in tmp_path.iterdir()} == {"r.jsonl", "r.jsonl.plan"}
    assert rollout(ROWS, out, model=counting, **SETTINGS) == first


def test_rows_without_a_prompt_are_listed(tmp_path: Path, counting: str) -> None:
    user = {"role": "user", "content": "Count"}
    rows = [
        json.dumps({"messages": [user]}),
        "{broken",
        json.dumps({"messages": [{"role": "assistant", "content": "x"}]}),
        json.dumps({"messages": [{**user, "content": "Count " * 500}]}),
        json.dumps({"messages": [user, {"role": "assistant", "content": "x"}]}),
    ]
    data, out = tmp_path / "d.jsonl", tmp_path / "r.jsonl"
    data.write_text("\n".join(rows))
    done = rollout(data, out, model=counting, **SETTINGS)
    assert [w["row"] for w in lines(out)] == [0, 4]
    listed = lines(tmp_path / "r.jsonl.rejected.jsonl")
    assert [(r["row"], r["line"]) for r in listed] == [(1, 2), (2, 3), (3, 4)]
    assert [r["reason"].split(":")[0] for r in listed[:2]] == ["malformed JSON", "no prompt"]
    assert "--max-new-tokens 12 in 512" in listed[2]["reason"]
    assert (done.rows, done.rejected, done.prompts) == (5, 3, 2)
    assert f"3 of 5 rows not answered, see {out}.rejected.jsonl\n  1 row: malformed" in str(done)
    assert list(done.summary()["rejected_reasons"].values()) == [1, 1, 1]
    with pytest.raises(BadInput, match=r"row 1 .*d\.jsonl:2.*malformed JSON"):
        rollout(data, tmp_path / "strict.jsonl", model=counting, strict=True, **SETTINGS)


def test_data_without_any_prompt(tmp_path: Path, counting: str) -> None:
    out = tmp_path / "r.jsonl"
    with pytest.raises(DataError, match="nothing to answer in rows: no row of 2"):
        rollout([{"text": "a b c"}, {"text": "d"}], out, model=counting, **SETTINGS)
    assert "no user turn" in (tmp_path / "r.jsonl.rejected.jsonl").read_text()
    assert len(lines(rollout(ROWS, out, model=counting, **SETTINGS).path)) == 11
    assert not (tmp_path / "r.jsonl.rejected.jsonl").exists()


def test_the_scans_way_of_reading_data(tmp_path: Path, counting: str) -> None:
    rows = [{"talk": [{"who": "human", "says": "Count"}, {"who": "gpt", "says": "x"}]}] * 3
    columns = {"messages": "talk", "role": "who", "content": "says"}
    rollout(rows, tmp_path / "r.jsonl", model=counting, columns=columns, limit=2, **SETTINGS)
    written = lines(tmp_path / "r.jsonl")
    assert [w["messages"][0] for w in written] == [{"role": "user", "content": "Count"}] * 2
    assert [w["key"] for w in written] == ["0", "1"]


def test_settings_are_checked(tmp_path: Path, counting: str) -> None:
    for settings, message in [
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"temperature": float("inf")}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.1}, "--top-p"),
        ({"n": 0}, "--n must be at least 1"),
        ({"n": 2, "temperature": 0}, "same answer 2 times"),
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"max_new_tokens": 512}, "no room"),
        ({"batch_size": 0}, "--batch-size"),
        ({"batch_size": "many"}, "--batch-size"),
        ({"max_length": 9999}, "--max-length"),
        ({"temprature": 1}, "did you mean 'temperature'"),
    ]:
        with pytest.raises(BadInput, match=message):
            rollout(ROWS, tmp_path / "r.jsonl", **{"model": counting, **settings})
    assert not list(tmp_path.iterdir())


def test_the_file_to_write_is_checked(tmp_path: Path, counting: str) -> None:
    data = tmp_path / "data" / "d.jsonl"
    data.parent.mkdir()
    data.write_text(json.dumps(ROWS[0]))
    for out, message in [
        (tmp_path / "r.txt", "in .jsonl"),
        (data, "lies in the data"),
        (data.parent / "r.jsonl", "lies in the data"),
    ]:
        given = data.parent if out.parent == data.parent else data
        with pytest.raises(BadInput, match=message):
            rollout(given, out, model=counting, **SETTINGS)
    assert not RolloutFiles(data).file(".plan").exists()
    with pytest.raises(BadInput, match="cannot write"):
        rollout(ROWS, data / "r.jsonl", model=counting, **SETTINGS)


def test_a_model_without_a_template(tmp_path: Path, counting: str, sampled: list[Answer]) -> None:
    from transformers import AutoTokenizer

    bare = tmp_path / "bare"
    bare.mkdir()
    for file in Path(counting).iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    (bare / "chat_template.jinja").unlink()
    assert AutoTokenizer.from_pretrained(bare).chat_template is None
    rollout(
        ROWS,
        tmp_path / "r.jsonl",
        model=str(bare),
        temperature=0,
        then_scan=str(tmp_path / "s"),
        **SETTINGS,
    )
    found = scored(Scan.open(tmp_path / "s"))
    for example, answer in enumerate(sampled):
        if answer.ids:
            assert found[example][: len(answer.ids)] == list(answer.ids)
    tokens = Scan.open(tmp_path / "s").tokens()
    assert (tokens["rank"][tokens["token"] != "</s>"] == 0).all()


def test_the_command(
    tmp_path: Path,
    counting: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "r.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    asked = [
        "rollout",
        str(data),
        "--model",
        counting,
        "--out",
        str(out),
        "--n",
        "2",
        "--max-new-tokens",
        "12",
        "--top-p",
        "0.9",
        "--rows_per_unit",
        "4",
    ]
    assert _run(asked) == 0
    assert "22 answers to 11 prompts" in capsys.readouterr().out
    assert _run([*asked, "--json", "--then-scan", str(tmp_path / "s")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["answers"], found["path"]) == (22, str(out))
    assert found["scan"]["examples"] + found["empty"] == 22
    assert _run([*asked, "--temperature", "-1"]) == 2
    assert "--temperature" in capsys.readouterr().err
    assert len(lines(out)) == 22

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eaft_probe.verbs.rollout.rollout.load_model", interrupt)
    assert _run([*asked[:-1], "5", "--overwrite"]) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_rollouts_are_data_like_any_other(tmp_path: Path, counting: str) -> None:
    rollout(ROWS, tmp_path / "d" / "a.jsonl", model=counting, **SETTINGS)
    rollout(ROWS, tmp_path / "d" / "b.jsonl", model=counting, seed=1, **SETTINGS)
    done = scan(tmp_path / "d", tmp_path / "s", model=counting, keep=["row", "finish"])
    rows = done.examples()["row"].astype(int).to_numpy()
    assert done.manifest["data"]["rows"] == 22
    assert set(np.unique(rows)) <= set(range(11))


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{"])
def test_a_damaged_plan_is_one_line(tmp_path: Path, counting: str, text: str) -> None:
    out = tmp_path / "r.jsonl"
    rollout(ROWS, out, model=counting, **SETTINGS)
    out.with_name("r.jsonl.plan").write_text(text)
    with pytest.raises(ScanError, match=r"plan is damaged.*--overwrite"):
        rollout(ROWS, out, model=counting, **SETTINGS)


def test_a_link_in_place_of_the_parts_is_not_written_through(tmp_path: Path, counting: str) -> None:
    out, elsewhere = tmp_path / "r.jsonl", tmp_path / "elsewhere"
    with pytest.raises(KeyboardInterrupt):
        rollout(ROWS, out, model=counting, **SETTINGS, progress=Stop(4))
    out.with_name("r.jsonl.parts").rename(elsewhere)
    out.with_name("r.jsonl.parts").symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    with pytest.raises(ScanError, match=r"parts is a link"):
        rollout(ROWS, out, model=counting, **SETTINGS)
    assert sorted(elsewhere.iterdir()) == before
