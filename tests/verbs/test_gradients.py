"""Exact whole-model gradients of a scan's tokens, against plain float64 loops of autograd."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from eaft_probe import Scan, scan
from eaft_probe.cli import _run
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.data.batches import window_start
from eaft_probe.errors import BadInput, ProbeError, ScanError
from eaft_probe.model import token_gradients
from eaft_probe.progress import Silent
from eaft_probe.verbs.gradients import gradients as verb
from eaft_probe.verbs.gradients.gradients import gradients

CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"say {i}"},
            {"role": "assistant", "content": " ".join(["the fox", "jumps"][: 1 + i % 2])},
        ]
    }
    for i in range(14)
]
TEXTS = [{"text": "the quick brown fox jumps over the lazy dog " * (1 + 3 * i)} for i in range(3)]
KEYS = ["example", "position"]


def folder_of(architecture: str, folder: Path) -> str:
    return str(tiny.save(folder, tiny.build(architecture)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return folder_of("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def scanned(model: str, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """Flagged so that a good part of the tokens are conflicts."""
    folder = tmp_path_factory.mktemp("scan") / "s"
    return scan(CHATS, folder, model=model, rows_per_unit=5).flag(ConflictRule(9, 0.01))


@pytest.fixture
def fresh(scanned: Scan, tmp_path: Path) -> Scan:
    """A copy of the scan without gradients."""
    shutil.copytree(scanned.path, tmp_path / "s")
    return Scan.open(tmp_path / "s")


class Stop(Silent):
    """Ctrl-C once so many tokens are done."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, rows: int, tokens: int) -> None:
        self.left -= tokens
        if tokens and self.left <= 0:
            raise KeyboardInterrupt


class Notes(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, rows: int, tokens: int) -> None:
        self.done += tokens


def in_float64(loaded: Any, text: str, length: int, plain: bool = False) -> dict[int, float]:
    """position → gradient norm of its nll, every token of the text but the first; one
    `autograd.grad` each, over windows that overlap by one token."""
    ids = loaded.tokenizer(text, add_special_tokens=plain)["input_ids"]
    parameters = list({id(p): p for p in loaded.model.parameters()}.values())
    norms = {}
    for start in range(0, len(ids) - 1, length - 1):
        window = ids[start : start + length]
        logprobs = loaded.model(input_ids=torch.tensor([window])).logits[0].log_softmax(-1)
        for at in range(1, len(window)):
            nll = -logprobs[at - 1, window[at]]
            found = torch.autograd.grad(nll, parameters, retain_graph=True, allow_unused=True)
            squares = [float((g**2).sum()) for g in found if g is not None]
            norms[start + at] = sum(squares) ** 0.5
    return norms


class Loaded:
    """A model in double precision, and its tokenizer."""

    def __init__(self, folder: str, adapter: str | None = None) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        # Experts one by one: grouped products know no float64. Other models do not read it.
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, experts_implementation="eager"
        )
        if adapter:
            self.model = PeftModel.from_pretrained(self.model, adapter).merge_and_unload()
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)


def require_exact(scan: Scan, table: pandas.DataFrame, norms: Callable[[str], Any]) -> None:
    texts = scan.examples().set_index("example")["text"]
    for example, mine in table.groupby("example"):
        truth = norms(texts[example])
        for row in mine.itertuples():
            assert row.grad_full == pytest.approx(truth[row.position], rel=1e-4)


# --- the numbers ---


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "gemma2", "qwen3-moe"])
def test_every_norm_equals_a_float64_loop(name: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path / "m")
    scanned = scan(CHATS[:4], tmp_path / "s", model=folder)
    found = gradients(tmp_path / "s", sample=1000).table
    assert len(found) == scanned.manifest["counts"]["trained_tokens"]
    loaded = Loaded(folder)
    require_exact(scanned, found, lambda text: in_float64(loaded, text, 64))


@pytest.mark.parametrize("limit", [None, 12])
def test_long_text_is_read_in_its_windows(model: str, tmp_path: Path, limit: int | None) -> None:
    scanned = scan(TEXTS, tmp_path / "s", model=model, max_length=limit)
    assert scanned.tokens()["position"].max() > 64
    found = gradients(tmp_path / "s", sample=60).table
    assert found["position"].max() > 64
    loaded = Loaded(model)
    require_exact(scanned, found, lambda text: in_float64(loaded, text, limit or 64, plain=True))


def test_a_conversation_that_was_cut_is_read_as_far(model: str, tmp_path: Path) -> None:
    scanned = scan(CHATS[:4], tmp_path / "s", model=model, max_length=28)
    assert scanned.manifest["counts"]["cut_examples"] > 0
    found = gradients(tmp_path / "s").table
    assert len(found) == scanned.manifest["counts"]["trained_tokens"]
    loaded = Loaded(model)
    require_exact(scanned, found, lambda text: in_float64(loaded, text, 28))


def test_sure_tokens_keep_their_digits(model: str, tmp_path: Path) -> None:
    """P − onehot of p = 1 − 1e-7, which float32 softmax would round away."""
    loaded = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        loaded.lm_head.weight *= 40
    loaded.save_pretrained(tmp_path / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    text = {"text": "the quick brown fox jumps over the dog"}
    sure = Loaded(str(tmp_path / "m"))
    ids = sure.tokenizer(text["text"])["input_ids"]
    for _ in range(8):  # its own greedy text, which it is sure of
        logits = sure.model(input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
    from eaft_probe.model.loading import load_model

    found = [
        token_gradients.WholeModel(load_model(str(tmp_path / "m")))(ids, i)
        for i in range(len(ids) - 8, len(ids))
    ]
    for i, (norm, nll) in zip(range(len(ids) - 8, len(ids)), found, strict=True):
        logprob = sure.model(input_ids=torch.tensor([ids[:i]])).logits[0, -1].log_softmax(-1)
        taken = torch.autograd.grad(-logprob[ids[i]], list(sure.model.parameters()))
        truth = sum(float((g**2).sum()) for g in taken) ** 0.5
        assert norm == pytest.approx(truth, rel=2e-3)  # the logits' own rounding, times 40
        assert nll == pytest.approx(-float(logprob[ids[i]].detach()), rel=2e-3)
    assert min(nll for _, nll in found) < 1e-6


def test_an_adapter_is_merged(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    adapted = get_peft_model(tiny.build("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            parameter.data = torch.randn_like(parameter) * 0.3
    adapted.save_pretrained(tmp_path / "a")
    scanned = scan(CHATS[:2], tmp_path / "s", model=model, adapter=str(tmp_path / "a"))
    found = gradients(tmp_path / "s").table
    loaded = Loaded(model, str(tmp_path / "a"))
    require_exact(scanned, found, lambda text: in_float64(loaded, text, 64))
    with pytest.raises(BadInput, match="under other weights than those of"):
        gradients(tmp_path / "s", model=folder_of("llama-tied", tmp_path / "other"))


def test_the_file_holds_the_scan_s_columns(fresh: Scan) -> None:
    found = gradients(fresh.path, sample=40)
    file = pq.read_table(fresh.path / "gradients.parquet")
    names = [
        "example",
        "turn",
        "position",
        "cell",
        "stands_for",
        "grad_full",
        "grad_logits",
        "grad_head",
        "prob",
        "entropy",
        "surprise",
    ]
    assert file.column_names == names
    assert all(f.metadata[b"meaning"] for f in file.schema)
    both = found.table.merge(fresh.tokens(), on=KEYS, suffixes=("", "_own"))
    assert len(both) == 40
    for name in names[6:]:
        np.testing.assert_array_equal(both[name], both[f"{name}_own"])
    assert found.table["stands_for"].sum() <= found.of
    assert gradients(fresh.path, sample=10**6).table["stands_for"].eq(1).all()


def test_a_column_that_was_asked_for_comes_along(model: str, tmp_path: Path) -> None:
    scan(CHATS[:3], tmp_path / "s", model=model, statistics=["grad_hidden"])
    found = gradients(tmp_path / "s", sample=9)
    assert "grad_hidden" in found.table
    assert "grad_hidden" in set(found.agreement()["norm"])


def test_windows_begin_where_the_scan_s_do() -> None:
    """Against the loop over starts that cuts a text."""
    for length in (2, 3, 7):
        for start in range(0, 40, length - 1):
            for position in range(start + 1, start + length):
                assert window_start(position, length) == start


# --- going on ---


def test_a_stopped_run_goes_on_to_the_same_file(fresh: Scan, tmp_path: Path) -> None:
    shutil.copytree(fresh.path, tmp_path / "whole")
    wanted = gradients(tmp_path / "whole", sample=30).table
    for after in (1, 7, 12):
        with pytest.raises(KeyboardInterrupt):
            gradients(fresh.path, sample=30, progress=Stop(after))
    notes = Notes()
    found = gradients(fresh.path, sample=30, progress=notes)
    assert notes.done == 30 - 20
    pandas.testing.assert_frame_equal(found.table, wanted)
    assert found.made.finished


def test_a_larger_sample_goes_on_and_a_smaller_is_there(fresh: Scan, tmp_path: Path) -> None:
    shutil.copytree(fresh.path, tmp_path / "whole")
    first = gradients(fresh.path, sample=12).table
    notes = Notes()
    second = gradients(fresh.path, sample=30, progress=notes).table
    assert notes.done == 18
    pandas.testing.assert_frame_equal(second[KEYS][:12], first[KEYS])
    pandas.testing.assert_frame_equal(second, gradients(tmp_path / "whole", sample=30).table)
    assert len(gradients(fresh.path, sample=5).table) == 30


def test_what_a_stopped_run_has_is_a_sample(fresh: Scan) -> None:
    """Each token stands for its share of what is there."""
    with pytest.raises(KeyboardInterrupt):
        gradients(fresh.path, sample=50, progress=Stop(20))
    table = pq.read_table(fresh.path / "gradients.parquet").to_pandas()
    assert len(table) == 20
    counts = fresh.tokens(["prob", "entropy"])
    assert table["stands_for"].sum() <= len(counts)
    smaller = gradients(fresh.path, sample=10)
    assert len(smaller.table) == 20
    assert smaller.made.finished


def test_a_finished_sample_is_left_alone(fresh: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients(fresh.path, sample=5)
    before = (fresh.path / "gradients.parquet").stat().st_mtime_ns
    monkeypatch.setattr(verb, "load_model", None)
    gradients(fresh.path, sample=5)
    assert (fresh.path / "gradients.parquet").stat().st_mtime_ns == before


def test_what_is_done_is_written_while_it_runs(
    fresh: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Look(Silent):
        def advance(self, rows: int, tokens: int) -> None:
            if tokens and (fresh.path / "gradients.parquet").exists():
                seen.append(pq.read_metadata(fresh.path / "gradients.parquet").num_rows)

    monkeypatch.setattr(verb, "SAVE_SECONDS", 0.0)
    gradients(fresh.path, sample=6, progress=Look())
    assert seen == [1, 2, 3, 4, 5]


def test_the_scan_itself_is_not_altered(fresh: Scan) -> None:
    before = {f: f.read_bytes() for f in fresh.path.rglob("*") if f.is_file()}
    gradients(fresh.path, sample=5)
    after = {f: f.read_bytes() for f in fresh.path.rglob("*") if f.is_file()}
    assert after.pop(fresh.path / "gradients.parquet")
    assert after == before


def test_a_rerun_of_the_scan_keeps_it_and_overwrite_removes_it(model: str, tmp_path: Path) -> None:
    file = tmp_path / "s" / "gradients.parquet"
    scan(CHATS[:3], tmp_path / "s", model=model)
    gradients(tmp_path / "s", sample=5)
    scan(CHATS[:3], tmp_path / "s", model=model)
    assert file.exists()
    scan(CHATS[:4], tmp_path / "s", model=model, overwrite=True)
    assert not file.exists()


# --- refusals ---


def test_another_model_is_refused(fresh: Scan, tmp_path: Path) -> None:
    other = folder_of("llama-tied", tmp_path / "m")
    with pytest.raises(BadInput, match="was made under other weights") as caught:
        gradients(fresh.path, model=other)
    assert "\n" not in str(caught.value)
    assert not (fresh.path / "gradients.parquet").exists()


def test_a_model_that_moved_is_the_same(fresh: Scan, model: str, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "moved")
    assert len(gradients(fresh.path, sample=3, model=str(tmp_path / "moved")).table) == 3


def test_another_seed_is_refused_until_overwrite(fresh: Scan) -> None:
    first = gradients(fresh.path, sample=20).table
    with pytest.raises(ScanError, match="another seed; --overwrite"):
        gradients(fresh.path, sample=20, seed=1)
    second = gradients(fresh.path, sample=20, seed=1, overwrite=True).table
    assert set(map(tuple, second[KEYS].to_numpy())) != set(map(tuple, first[KEYS].to_numpy()))


def test_a_file_of_another_scan_or_damaged_is_refused(fresh: Scan, model: str, tmp_path: Path):
    scan(CHATS[:3], tmp_path / "other", model=model)
    gradients(fresh.path, sample=5)
    shutil.copy(fresh.path / "gradients.parquet", tmp_path / "other")
    with pytest.raises(ScanError, match="of another scan"):
        gradients(tmp_path / "other")
    (fresh.path / "gradients.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ScanError, match="damaged"):
        gradients(fresh.path)
    assert len(gradients(fresh.path, sample=5, overwrite=True).table) == 5


def test_weights_that_only_look_the_same_are_found_out(
    fresh: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the nll of each token, which the scan has too."""
    load = verb.load_model

    def louder(*arguments: Any, **named: Any) -> Any:
        model = load(*arguments, **named)
        model.whole.lm_head.weight.data *= 1.5
        return model

    monkeypatch.setattr(verb, "load_model", louder)
    with pytest.raises(ProbeError, match="what was read is not the same"):
        gradients(fresh.path)


def test_rows_that_do_not_come_back_are_left_out_and_counted(model: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [
        tokenizer("the lazy dog does not mind")["input_ids"],
        random.integers(5, tiny.VOCAB, 30).tolist(),
    ]
    rows = [{"input_ids": i, "labels": i} for i in ids]
    scan(rows, tmp_path / "s", model=model)
    notes = Notes()
    found = gradients(tmp_path / "s", sample=1000, progress=notes)
    assert set(found.table["example"]) == {0}
    assert found.made.left_out == 1
    assert found.covered < 1
    assert any("1 example left out" in n for n in notes.notes)
    scan(rows[1:], tmp_path / "none", model=model)
    with pytest.raises(ScanError, match="comes back from its text"):
        gradients(tmp_path / "none")
    assert not (tmp_path / "none" / "gradients.parquet").exists()


@pytest.mark.parametrize("given", [{"sample": 0}, {"sample": "many"}, {"smaple": 3}])
def test_settings_that_cannot_be(fresh: Scan, given: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="sample"):
        gradients(fresh.path, **given)


def test_no_scan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="no scan"):
        gradients(tmp_path)


def test_out_of_memory_is_one_line(fresh: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, *arguments: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.Tensor, "backward", full)
    with pytest.raises(ProbeError, match="out of memory on a context of"):
        gradients(fresh.path)


# --- the command line ---


def test_the_command_prints_its_numbers(fresh: Scan, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(fresh.path)
    assert _run(["gradients", folder, "--sample", "40", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["sampled"] == 40
    assert said["tokens_in_cells"] <= said["tokens"]
    assert {r["measure"] for r in said["agreement"]} == {
        "rank_correlation",
        "conflict_rank_correlation",
        "conflict_share",
    }
    assert _run(["gradients", folder, "--sample", "40"]) == 0
    shown = capsys.readouterr().out
    assert "Exact gradient norms of 40 of" in shown
    assert "conflict_rank_correlation" in shown
    assert _run(["gradients", folder, "--seed", "3"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_ctrl_c_says_how_to_go_on(
    fresh: Scan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from eaft_probe.progress_bar import TerminalProgress

    monkeypatch.setattr(TerminalProgress, "advance", Stop(4).advance)
    assert _run(["gradients", str(fresh.path)]) == 130
    assert "the same command continues from" in capsys.readouterr().err
    assert pq.read_metadata(fresh.path / "gradients.parquet").num_rows == 4
