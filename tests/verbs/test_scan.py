"""A scan end to end under a tiny random model, against a plain float64 loop."""

import errno
import gc
import hashlib
import json
import math
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from eaft_probe import Scan, scan
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.measure import measure
from eaft_probe.errors import BadInput, DataError, MissingColumn, NonFinite, ProbeError, ScanError
from eaft_probe.model.loading import CausalLM, load_model
from eaft_probe.progress import Silent

COLUMNS = {
    "example": "int64",
    "turn": "int16",
    "position": "int32",
    "token_id": "int32",
    "token": "dictionary<values=string, indices=int32, ordered=0>",
    "char_start": "int32",
    "char_end": "int32",
    "logprob": "float",
    "prob": "float",
    "entropy": "float",
    "entropy_top20": "float",
    "varentropy": "float",
    "surprise": "float",
    "concentration": "float",
    "rank": "int32",
    "top1_id": "int32",
    "top1": "dictionary<values=string, indices=int32, ordered=0>",
    "top1_prob": "float",
    "grad_logits": "float",
    "grad_head": "float",
}
WORDS = "the cat sat on a mat and then it ran over hills to see what was there".split()  # noqa: SIM905


def chat(number: int, turns: int = 1, system: str | None = None) -> dict[str, Any]:
    words = [WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(4 + number % 9)]
    messages = [{"role": "system", "content": system}] if system else []
    for turn in range(turns):
        messages += [
            {"role": "user", "content": f"tell me {turn} {words[0]}"},
            {"role": "assistant", "content": " ".join(words[turn:])},
        ]
    return {"id": f"row-{number}", "messages": messages}


ROWS = [chat(n, 1 + n % 3) for n in range(20)]


def float64_logprobs(folder: str, text: str) -> tuple[list[int], np.ndarray]:
    """Every position's log-probabilities from one unpadded sequence in double precision."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    top = logits.max(axis=1, keepdims=True)
    return ids, logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("*/part-*.parquet"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_every_token_against_a_float64_loop(tmp_path: Path, model_folder: str) -> None:
    done = scan(ROWS, tmp_path / "s", model=model_folder, rows_per_unit=7)
    tokens, examples = done.tokens(), done.examples()
    assert len(examples) == len(ROWS)
    for example, text in zip(examples["example"], examples["text"], strict=True):
        ids, logprobs = float64_logprobs(model_folder, text)
        mine = tokens[tokens["example"] == example]
        expected = "".join(
            m["content"] + "<|im_end|>"
            for m in ROWS[example]["messages"]
            if m["role"] == "assistant"
        )
        assert "".join(mine["token"].astype(str)) == expected
        for row in mine.itertuples():
            truth = logprobs[row.position - 1]
            assert row.token_id == ids[row.position]
            assert abs(row.logprob - truth[row.token_id]) <= 1e-4
            assert abs(row.entropy + (np.exp(truth) * truth).sum()) <= 1e-4
            assert row.rank == (truth > truth[row.token_id]).sum()
            assert text[row.char_start : row.char_end] == row.token


def test_contract_of_the_files(tmp_path: Path, model_folder: str) -> None:
    rows = [{**row, "source": {"a": 1}} for row in ROWS]
    done = scan(rows, tmp_path / "s", model=model_folder, keep=["source"])
    schema = pq.read_schema(tmp_path / "s/tokens/part-00000.parquet")
    assert {f.name: str(f.type) for f in schema} == COLUMNS
    assert schema.field("entropy").metadata[b"unit"] == b"nats"
    assert all(b"meaning" in schema.field(name).metadata for name in COLUMNS)
    examples = done.examples()
    assert list(examples) == [
        "example",
        "turn",
        "key",
        "text",
        "messages",
        "tokens",
        "trained_tokens",
        "mean_nll",
        "mean_entropy",
        "source",
    ]
    assert list(examples["key"]) == [row["id"] for row in ROWS]
    assert json.loads(examples["messages"][3]) == ROWS[3]["messages"]
    assert list(examples["source"]) == ['{"a": 1}'] * len(ROWS)
    tokens = done.tokens()
    means = tokens.groupby("example")["logprob"].mean()
    assert np.allclose(-means, examples["mean_nll"], atol=1e-5)
    assert done.manifest["counts"]["trained_tokens"] == len(tokens)
    assert done.manifest["parts"][0]["rows"] == len(tokens)
    order = tokens[["example", "position"]].apply(tuple, axis=1)
    assert list(order) == sorted(order)
    present = {p.name for p in (tmp_path / "s").iterdir()}
    assert present == {
        "plan.json",
        "tokens",
        "examples",
        "rejected.jsonl",
        "manifest.json",
        "rule.json",
        "conflicts.parquet",
        "README.md",
    }


@pytest.mark.parametrize("settings", [{"tokens_per_batch": 40}, {"rows_per_unit": 3}, {"limit": 9}])
def test_a_tokens_numbers_depend_on_its_own_example(
    tmp_path: Path, model_folder: str, settings: dict[str, int]
) -> None:
    shared = [chat(n, 1, system="You answer " + "very " * 40 + "briefly.") for n in range(12)]
    rows = [*ROWS, *shared]
    whole = scan(rows, tmp_path / "whole", model=model_folder).tokens()
    other = scan(rows, tmp_path / "other", model=model_folder, **settings).tokens()
    whole = whole.iloc[: len(other)]
    assert list(whole["position"]) == list(other["position"])
    assert np.abs(whole["logprob"] - other["logprob"]).max() < 1e-4


def test_alone_equals_behind_a_shared_prefix(tmp_path: Path, model_folder: str) -> None:
    rows = [chat(n, 1, system="You answer " + "very " * 40 + "briefly.") for n in range(12)]
    together = scan(rows, tmp_path / "a", model=model_folder).tokens()
    alone = [scan([r], tmp_path / f"b{i}", model=model_folder).tokens() for i, r in enumerate(rows)]
    each = np.concatenate([a["logprob"] for a in alone])
    assert np.abs(together["logprob"].to_numpy() - each).max() < 1e-4


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


@pytest.mark.parametrize("after", [0, 5, 11, 19])
def test_an_interrupted_scan_goes_on_byte_for_byte(
    tmp_path: Path, model_folder: str, after: int
) -> None:
    settings: dict[str, Any] = {"model": model_folder, "rows_per_unit": 4}
    scan(ROWS, tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        scan(ROWS, tmp_path / "cut", **settings, progress=Stop(after))
    with pytest.raises(ScanError, match="unfinished"):
        Scan.open(tmp_path / "cut")
    scan(ROWS, tmp_path / "cut", **settings)
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")
    assert not list((tmp_path / "cut").rglob(".*"))


def test_a_finished_scan_is_left_alone(
    tmp_path: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(ROWS, tmp_path / "s", model=model_folder)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*.*")}

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished scan loaded the model again")

    monkeypatch.setattr("eaft_probe.verbs.scan.load_scorer.load_model", refuse)
    scan(ROWS, tmp_path / "s", model=model_folder)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*.*")}


def test_another_scan_in_the_folder_is_refused(tmp_path: Path, model_folder: str) -> None:
    scan(ROWS, tmp_path / "s", model=model_folder)
    with pytest.raises(ScanError, match="train_on") as error:
        scan(ROWS, tmp_path / "s", model=model_folder, train_on="all")
    assert "--overwrite" in str(error.value)
    with pytest.raises(ScanError, match=r"data\.fingerprint"):
        scan([*ROWS[:-1], chat(99)], tmp_path / "s", model=model_folder)
    again = scan(ROWS, tmp_path / "s", model=model_folder, train_on="all", overwrite=True)
    assert again.manifest["config"]["train_on"] == "all"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(ScanError, match="not empty"):
        scan(ROWS, tmp_path / "mine", model=model_folder, overwrite=True)


def test_a_typo_costs_neither_the_folder_nor_an_old_scan(tmp_path: Path, model_folder: str) -> None:
    out = tmp_path / "s"
    for typo in ({"statistics": ["entrpy"]}, {"dtype": "float8"}, {"max_length": 9999}):
        with pytest.raises(BadInput):
            scan(ROWS, out, **{"model": model_folder, **typo})
    with pytest.raises(DataError, match="nothing to score"):
        scan([{"messages": []}], out, model=model_folder, format="messages")
    scan(ROWS, out, model=model_folder)
    with pytest.raises(BadInput):
        scan(ROWS, out, model=model_folder, statistics=["entrpy"], overwrite=True)
    assert len(Scan.open(out).examples()) == len(ROWS)


@pytest.mark.parametrize("link", ["examples", "tokens", "halved", "units"])
def test_a_link_in_the_folder_is_not_written_through(
    tmp_path: Path, model_folder: str, link: str
) -> None:
    """Of an interrupted scan; in a folder without a part the link itself is replaced."""
    out, elsewhere = tmp_path / "s", tmp_path / "elsewhere"
    elsewhere.mkdir()
    scan(ROWS, out, model=model_folder, rows_per_unit=7)
    (out / "manifest.json").unlink()
    for kind in ("tokens", "examples"):
        (out / kind / "part-00002.parquet").unlink()
    if (out / link).exists():
        shutil.move(out / link, elsewhere / link)
    else:
        (elsewhere / link).mkdir()
    (out / link).symlink_to(elsewhere / link)
    before = sorted(elsewhere.rglob("*"))
    with pytest.raises(ScanError, match=f"{link} is a link"):
        scan(ROWS, out, model=model_folder, rows_per_unit=7)
    assert sorted(elsewhere.rglob("*")) == before
    done = scan(ROWS, out, model=model_folder, rows_per_unit=7, overwrite=True)
    assert len(done.examples()) == len(ROWS)
    assert sorted(elsewhere.rglob("*")) == before


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[]", "{", '{"today": 1e999, "threads": "x"}']
)
def test_a_damaged_plan_is_one_line(tmp_path: Path, model_folder: str, text: str) -> None:
    out = tmp_path / "s"
    scan(ROWS, out, model=model_folder)
    (out / "plan.json").write_text(text)
    with pytest.raises(ScanError, match=r"plan\.json is damaged|other settings"):
        scan(ROWS, out, model=model_folder)
    assert len(scan(ROWS, out, model=model_folder, overwrite=True).examples()) == len(ROWS)


def test_a_start_that_was_cut_short_blocks_nothing(tmp_path: Path, model_folder: str) -> None:
    (tmp_path / "s" / "tokens").mkdir(parents=True)
    assert len(scan(ROWS, tmp_path / "s", model=model_folder).examples()) == len(ROWS)


def test_a_damaged_part_of_a_cut_run_is_scored_again(tmp_path: Path, model_folder: str) -> None:
    settings: dict[str, Any] = {"model": model_folder, "rows_per_unit": 5}
    scan(ROWS, tmp_path / "s", **settings)
    whole = hashes(tmp_path / "s")
    (tmp_path / "s/manifest.json").unlink()
    for part in ("tokens/part-00001.parquet", "examples/part-00002.parquet"):
        data = (tmp_path / "s" / part).read_bytes()
        (tmp_path / "s" / part).write_bytes(data[: len(data) // 2])
    fewer = tmp_path / "s/tokens/part-00000.parquet"
    pq.write_table(pq.read_table(fewer, partitioning=None)[:-1], fewer)
    scan(ROWS, tmp_path / "s", **settings)
    assert hashes(tmp_path / "s") == whole


def test_damaged_folders_are_refused_in_one_line(tmp_path: Path, model_folder: str) -> None:
    scan(ROWS, tmp_path / "s", model=model_folder)
    (tmp_path / "s/rule.json").write_text("{bad")
    with pytest.raises(ScanError, match="damaged"):
        _ = Scan.open(tmp_path / "s").rule
    (tmp_path / "s/manifest.json").write_text('{"schema_version": 1}')
    with pytest.raises(ScanError, match="damaged"):
        Scan.open(tmp_path / "s")


def test_column_mappings_are_checked(tmp_path: Path, model_folder: str) -> None:
    rows = [{"talk": [{"who": "user", "says": "hi"}, {"who": "assistant", "says": "the cat"}]}]
    columns = {"messages": "talk", "role": "who", "content": "says"}
    done = scan(rows, tmp_path / "s", model=model_folder, columns=columns)
    assert "".join(done.tokens()["token"].astype(str)) == "the cat<|im_end|>"
    for wrong, message in [({"messages": "tlak"}, "no 'tlak'"), ({"massages": "talk"}, "massages")]:
        with pytest.raises(BadInput, match=message):
            scan(rows, tmp_path / "t", model=model_folder, columns=wrong)


def test_rejected_rows_are_listed(tmp_path: Path, model_folder: str) -> None:
    lines = [
        json.dumps(ROWS[0]),
        "{broken",
        "",
        json.dumps({"messages": []}),
        json.dumps([1]),
        json.dumps({"messages": [{"role": "wizard", "content": "x"}]}),
        json.dumps({"messages": [{"role": "user", "content": "x" * 1_000_000}]}),
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": "a\x00b"},
                    {"role": "assistant", "content": "c\x00d"},
                ]
            }
        ),
    ]
    path = tmp_path / "d.jsonl"
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    done = scan(path, tmp_path / "s", model=model_folder)
    listed = [json.loads(line) for line in (tmp_path / "s/rejected.jsonl").open()]
    assert [(r["row"], r["line"]) for r in listed] == [
        (1, 2),
        (2, 4),
        (3, 5),
        (4, 6),
        (5, 7),
        (7, 9),
    ]
    assert [list(r) for r in listed] == [["row", "file", "line", "reason"]] * 6
    assert list(done.examples()["example"]) == [0, 6]
    assert done.manifest["counts"]["rejected"] == 6
    with pytest.raises(BadInput, match=r"row 1 .*d\.jsonl:2.*malformed JSON"):
        scan(path, tmp_path / "strict", model=model_folder, strict=True)


def test_a_unit_without_a_usable_row_is_an_empty_part(tmp_path: Path, model_folder: str) -> None:
    rows = [ROWS[0], {"messages": []}, ROWS[1]]
    done = scan(rows, tmp_path / "s", model=model_folder, rows_per_unit=1, entropy_below=9.0)
    assert list(done.examples()["example"]) == [0, 2]
    assert set(done.tokens()["example"]) == {0, 2}
    assert [p["rows"] > 0 for p in done.manifest["parts"]] == [True, False, True]


def test_a_batch_too_large_for_the_memory_is_halved(
    tmp_path: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scan(ROWS, tmp_path / "whole", model=model_folder).tokens()

    def small_memory(model: Any, batch: Any, **more: Any) -> Any:
        if len(batch.window) > 3:
            raise torch.OutOfMemoryError("no memory")
        return measure(model, batch, **more)

    monkeypatch.setattr("eaft_probe.verbs.scan.load_scorer.measure", small_memory)
    done = scan(ROWS, tmp_path / "small", model=model_folder)
    assert done.manifest["counts"]["halved"] > 0
    assert np.abs(done.tokens()["logprob"] - whole["logprob"]).max() < 1e-4
    first = hashes(tmp_path / "small")
    monkeypatch.undo()  # memory enough, and a rerun of a lost part halves all the same
    (tmp_path / "small/manifest.json").unlink()
    (tmp_path / "small/tokens/part-00000.parquet").unlink()
    scan(ROWS, tmp_path / "small", model=model_folder)
    assert hashes(tmp_path / "small") == first


def test_the_model_goes_with_its_scan(
    tmp_path: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the next collection of cycles: a second scan may need its memory."""
    loaded = list[weakref.ref[CausalLM]]()

    def watched(*name: str, **settings: Any) -> CausalLM:
        model = load_model(*name, **settings)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr("eaft_probe.verbs.scan.load_scorer.load_model", watched)
    gc.disable()
    try:
        scan(ROWS[:3], tmp_path / "scan", model=model_folder)
        assert [model() for model in loaded] == [None]
    finally:
        gc.enable()


def test_nothing_to_score(tmp_path: Path, model_folder: str) -> None:
    rows = [{"messages": [{"role": "user", "content": "x"}]}]
    with pytest.raises(DataError, match=r"nothing to score.* because of this: no trained message;"):
        scan(rows, tmp_path / "s", model=model_folder)
    assert "no trained message" in (tmp_path / "s/rejected.jsonl").read_text()
    assert not (tmp_path / "s/manifest.json").exists()
    scan(ROWS, tmp_path / "s", model=model_folder)
    with pytest.raises(DataError, match="nothing to score"):
        scan(rows, tmp_path / "s", model=model_folder, overwrite=True)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no rows"):
        scan(tmp_path / "empty.jsonl", tmp_path / "t", model=model_folder)


def test_nan_logits_stop_the_scan(tmp_path: Path, model_folder: str) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    for file in Path(model_folder).iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    bad = tokenizer("tell", add_special_tokens=False)["input_ids"][-1]
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][bad] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ProbeError, match="NaN"):
        scan(ROWS, tmp_path / "s", model=str(broken))
    assert not list((tmp_path / "s").glob("tokens/*"))


def test_a_full_disk_leaves_no_half_part(
    tmp_path: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def full(where: Path, data: bytes) -> int:
        if "part-00001" in where.name:
            real(where, b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(where, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ProbeError, match="No space left"):
        scan(ROWS, tmp_path / "s", model=model_folder, rows_per_unit=8)
    assert [p.name for p in (tmp_path / "s/tokens").iterdir()] == ["part-00000.parquet"]
    monkeypatch.undo()
    done = scan(ROWS, tmp_path / "s", model=model_folder, rows_per_unit=8)
    assert len(done.examples()) == len(ROWS)
    scan(ROWS, tmp_path / "undisturbed", model=model_folder, rows_per_unit=8)
    assert hashes(tmp_path / "s") == hashes(tmp_path / "undisturbed")


def test_a_target_that_cannot_be_written(tmp_path: Path, model_folder: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="file"):
        scan(ROWS, tmp_path / "file" / "s", model=model_folder)


def test_quantile_rule_and_flagging(tmp_path: Path, model_folder: str) -> None:
    done = scan(ROWS, tmp_path / "s", model=model_folder, rows_per_unit=6, quantile=0.4)
    tokens = done.tokens()
    entropy, prob = (np.quantile(tokens[c].astype(np.float64), 0.4) for c in ("entropy", "prob"))
    rule = json.loads((tmp_path / "s/rule.json").read_text())
    assert math.isclose(rule["entropy_below"], entropy, rel_tol=1e-6)
    assert math.isclose(rule["prob_below"], prob, rel_tol=1e-6)
    expected = (tokens["entropy"] < entropy) & (tokens["prob"] < prob)
    assert 0 < expected.sum() == tokens["conflict"].sum() == len(done.conflicts())
    parts = hashes(tmp_path / "s")
    flagged = done.flag(ConflictRule(entropy_below=10.0, prob_below=0.5))
    assert flagged.tokens()["conflict"].sum() == (tokens["prob"] < 0.5).sum()
    assert parts == hashes(tmp_path / "s")


def test_conflicts_hold_their_context(tmp_path: Path, model_folder: str) -> None:
    done = scan(ROWS, tmp_path / "s", model=model_folder, entropy_below=9.0, prob_below=0.9)
    conflicts, text = done.conflicts(), dict(done.examples()[["example", "text"]].to_numpy())
    assert list(conflicts) == [
        "example",
        "turn",
        "position",
        "token",
        "top1",
        "prob",
        "top1_prob",
        "entropy",
        "rank",
        "before",
        "after",
    ]
    assert len(conflicts)
    for row in conflicts.itertuples():
        assert row.before + row.token + row.after in text[row.example]
        assert len(row.before) <= 80
        assert len(row.after) <= 80


def test_a_reference_adds_its_divergence(tmp_path: Path, model_folder: str) -> None:
    same = scan(ROWS, tmp_path / "s", model=model_folder, reference=model_folder).tokens()
    assert same["kl_reference"].abs().max() < 1e-5
    with pytest.raises(BadInput, match="--reference"):
        scan(ROWS, tmp_path / "t", model=model_folder, statistics=["kl_reference"])


def test_columns_on_request(tmp_path: Path, model_folder: str) -> None:
    extra = ["grad_hidden", "entropy_top5"]
    done = scan(ROWS, tmp_path / "s", model=model_folder, statistics=extra)
    assert set(extra) <= set(done.columns)
    table = done.tokens_table(["prob", "conflict"])
    assert table.column_names == ["prob", "conflict"]
    with pytest.raises(MissingColumn, match="--statistics entropy_top50"):
        done.tokens(["entropy_top50"])


def test_cut_conversations_and_split_text(tmp_path: Path, model_folder: str) -> None:
    cut = scan(ROWS, tmp_path / "cut", model=model_folder, max_length=48)
    counts = cut.manifest["counts"]
    assert counts["cut_examples"] > 0
    assert cut.tokens()["position"].max() == 47
    assert counts["cut_tokens"] > 0
    text = [{"text": " ".join(WORDS * 20)}]
    split = scan(text, tmp_path / "split", model=model_folder, max_length=16).tokens()
    whole = scan(text, tmp_path / "one", model=model_folder).tokens()
    assert list(split["position"]) == list(whole["position"])
    assert list(split["token_id"]) == list(whole["token_id"])


def test_a_random_sample_keeps_row_numbers(tmp_path: Path, model_folder: str) -> None:
    a, b = (
        scan(ROWS, tmp_path / n, model=model_folder, sample=6, seed=s).examples()
        for n, s in (("a", 1), ("b", 2))
    )
    assert len(a) == len(b) == 6
    assert set(a["example"]) != set(b["example"])
    assert all(ROWS[e]["id"] == k for e, k in zip(a["example"], a["key"], strict=True))


def test_settings_are_checked(tmp_path: Path, model_folder: str) -> None:
    for settings, message in [
        ({"modle": "x"}, "did you mean 'model'"),
        ({"limit": 0}, "--limit"),
        ({"quantile": 0.1, "prob_below": 0.1}, "--quantile"),
        ({"train_on": "user"}, "--train-on"),
        ({"statistics": ["entrpy"]}, "entropy"),
        ({"format": "mesages"}, "messages"),
        ({"tokens_per_batch": "many"}, "--tokens-per-batch"),
        ({"keep": ["text"]}, "--keep text"),
        ({"keep": ["nothing"]}, "available: id, messages"),
    ]:
        with pytest.raises(BadInput, match=message):
            scan(ROWS, tmp_path / "s", **{"model": model_folder, **settings})


def test_nonfinite_is_a_failure_not_bad_input() -> None:
    assert (NonFinite("x").exit_status, BadInput("x").exit_status) == (1, 2)


def test_sql_has_the_rule_that_the_scan_was_flagged_with_last(
    tmp_path: Path, model_folder: str
) -> None:
    done = scan(ROWS[:4], tmp_path / "s", model=model_folder)
    query = "SELECT count(*) FROM tokens WHERE conflict"
    before = done.rows(query)[0][0]
    done.flag(ConflictRule(100.0, 1.0))
    assert before < done.rows(query)[0][0] == len(done.conflicts()) == len(done.tokens())


class Removes(Silent):
    """Progress that removes a part when the unit after it is done."""

    def __init__(self, part: Path) -> None:
        self.part = part

    def advance(self, rows: int, tokens: int) -> None:
        if rows and self.part.exists() and len(list(self.part.parent.iterdir())) > 1:
            self.part.unlink()


def test_a_part_that_is_removed_meanwhile_is_said(model_folder: str, tmp_path: Path) -> None:
    """A KeyError. The same command scores it again."""
    rows, out = [chat(n) for n in range(9)], tmp_path / "s"
    removes = Removes(out / "examples" / "part-00000.parquet")
    with pytest.raises(ScanError, match=r"part-00000\.parquet is missing"):
        scan(rows, out, model=model_folder, rows_per_unit=2, progress=removes)
    finished = scan(rows, out, model=model_folder, rows_per_unit=2)
    assert finished.manifest["counts"]["examples"] == 9
