"""The vLLM engine over a fake that does what the real one may do. `test_vllm_real.py` has vLLM."""

import json
import os
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
from fake_vllm import CONTEXT, LLM, VOCAB, WEIGHT, WIDTH, Llm, Runner, Traps, states
from running import Bar, hashes

from eaft_probe import Scan, scan
from eaft_probe.columns.measure import TokenColumns
from eaft_probe.columns.statistics import chosen_statistics
from eaft_probe.data.batches import TokenBatch, Window, batch_of
from eaft_probe.engines.local import Worker, WorkerPool, _groups
from eaft_probe.engines.unit_queue import Job
from eaft_probe.engines.vllm_loading import _take_gpus
from eaft_probe.engines.vllm_model import VllmModel
from eaft_probe.errors import BadInput, ModelError, ProbeError
from eaft_probe.model.head import Head

NAMES = [s.name for s in chosen_statistics([], reference=False)]


@dataclass
class Installed:
    """What `import vllm` gives."""

    traps: Traps = field(default_factory=Traps)
    served: list[str] = field(default_factory=lambda: ["LlamaForCausalLM"])
    started: list[LLM] = field(default_factory=list)
    __version__: str = "fake"
    SamplingParams: Any = SimpleNamespace

    @property
    def ModelRegistry(self) -> Any:
        return SimpleNamespace(get_supported_archs=lambda: self.served)

    def LLM(self, **given: Any) -> LLM:
        self.started.append(LLM(traps=self.traps, **given))
        return self.started[-1]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    vllm = Installed()
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    return vllm


@pytest.fixture
def batch() -> TokenBatch:
    """Unequal rows: one of the context's length, two with the same ids, one with one token."""
    random = np.random.default_rng(0)
    rows = [random.integers(VOCAB, size=n).astype(np.int32) for n in (CONTEXT, 9, 2, 14)]
    rows.append(rows[1].copy())
    trained = [random.random(len(row)) < 0.6 for row in rows]
    for mask in trained:
        mask[0], mask[-1] = False, True
    return batch_of(
        rows[0][:0],
        [Window(n, 0, r, t) for n, (r, t) in enumerate(zip(rows, trained, strict=True))],
    )


def measured(batch: TokenBatch, traps: Traps) -> TokenColumns:
    llm = Llm(traps)
    llm.eaft_probe_begin(NAMES, VOCAB)
    tokenizer: Any = SimpleNamespace(convert_ids_to_tokens=str)
    head = Head(torch.empty(VOCAB, WIDTH, device="meta"), None)
    unused: Any = None
    model = VllmModel(llm, tokenizer, unused, unused, head, torch.float32, 0)
    return model.measure(batch)


RIGHT = {
    "at once": Traps(),
    "chunks that cut rows": Traps(chunk=5),
    "chunks of one token": Traps(chunk=1),
    "a request thrown out and read again": Traps(chunk=7, preempted=True),
    "requests in another order": Traps(chunk=11, backwards=True),
    "a padded vocabulary": Traps(padding=14),
    "a last row that predicts the answer to come": Traps(last_row=True, chunk=9),
    "a scaled head": Traps(scale=0.25),
    "a capped head": Traps(softcap=2.0),
}


@pytest.mark.parametrize("traps", RIGHT.values(), ids=RIGHT)
def test_columns_are_those_of_a_float64_loop(batch: TokenBatch, traps: Traps) -> None:
    columns, n = measured(batch, traps), 0
    for window in batch.window:
        hidden = states(window.ids.tolist()).double().numpy()
        for position in np.flatnonzero(window.trained):
            truth = reference.Position(
                int(window.ids[position]),
                hidden[position - 1],
                WEIGHT.double().numpy(),
                scale=traps.scale,
                softcap=traps.softcap,
            )
            assert columns["logprob"][n] == pytest.approx(reference.logprob(truth), abs=1e-5)
            entropy = reference.entropy(reference.log_softmax(truth.logits()))
            assert columns["entropy"][n] == pytest.approx(entropy, abs=1e-5)
            # Rows of the head that are alike tie, and a float32 product may break the tie.
            apart = np.asarray(truth.logits()) - truth.logits()[truth.label]
            assert (apart > 1e-6).sum() <= columns["rank"][n] <= (apart > -1e-6).sum() - 1
            norm = reference.norm(reference.output_gradient(truth)) * reference.norm(truth.hidden)
            assert columns["grad_head"][n] == pytest.approx(norm, rel=1e-4)
            n += 1
    assert n == len(columns["rank"]) > 20


REFUSED = {
    "rows off by one": (Traps(early=1, chunk=5), "it made logits of 30 of 33 tokens"),
    "numbers of another token": (Traps(mixed_up=True), "token .* by its logits, and .* by its own"),
    "a rank that is too low": (Traps(rank=-1), "token .* or another rank by its own"),
    "a rank that is too high": (Traps(rank=1), "token .* or another rank by its own"),
    "a beginning that is not computed": (Traps(cached=3), "it made logits of 27 of 33 tokens"),
    "another inside": (Traps(without_hook=True), "it made no logits of prompts"),
    "logits of fewer tokens": (Traps(padding=-1), "its logits are 49 of 50 tokens"),
}


@pytest.mark.parametrize(("traps", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(batch: TokenBatch, traps: Traps, message: str) -> None:
    with pytest.raises(ProbeError, match=f"vLLM fake cannot be used: {message}"):
        measured(batch, traps)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("two\nlines"), "^vLLM fake cannot be used: two lines; take --engine local$"),
        (torch.OutOfMemoryError("CUDA out of memory"), "^vLLM is out of memory: give less .*=0.8"),
    ],
)
def test_what_vllm_raises_is_one_line(batch: TokenBatch, error: Exception, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        measured(batch, Traps(error=error))


def test_bad_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "a fox"}')
    for settings, message in (
        ({"reference": "m"}, "--reference cannot be used with --engine vllm"),
        ({"adapter": "m"}, "merge the adapter into the model first"),
        ({"statistics": ["grad_hidden"]}, "grad_hidden cannot be measured with --engine vllm"),
        ({"engine": "local", "engine_arg": {"a": 1}}, "--engine-arg is for vLLM"),
    ):
        with pytest.raises(BadInput, match=message):
            scan(data, tmp_path / "scan", **{"engine": "vllm"} | settings)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(
        BadInput, match=r"--engine vllm needs vLLM: pip install 'eaft-probe\[vllm\]'"
    ):
        scan(data, tmp_path / "scan", engine="vllm")


# --- groups of GPUs ---


def test_each_worker_has_a_group_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that replaces another gets the group that is free."""

    def started(cls: type[Worker], number: int, device: str) -> Worker:
        unused: Any = SimpleNamespace(send=lambda message: None)
        return cls(unused, str(number), unused)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(Worker, "started", classmethod(started))
    unused: Any = None
    job = Job(unused, unused, unused, units=9, device="cuda", gpus=2)
    assert _groups(job) == 4
    pool = WorkerPool(job, 4)
    for _ in range(4):
        pool._start_worker()
    lost = pool.workers.pop(1)
    pool._start_worker()
    devices = [worker.device for worker in pool.workers]
    assert (lost.device, devices) == ("cuda:1", ["cuda:0", "cuda:2", "cuda:3", "cuda:1"])


@pytest.mark.parametrize(
    ("seen", "own"), [(None, "2,3"), ("", "2,3"), ("7,5,4,1", "4,1"), ("a,b,c,d,e", "c,d")]
)
def test_a_group_sees_its_own_gpus(
    seen: str | None, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen or "")
    if seen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    _take_gpus(1, 2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


# --- whole scans ---


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its context is that of its tokenizer, 64 tokens."""
    return str(tiny.save(tmp_path_factory.mktemp("model"), tiny.build()))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of them exceeds the context, and is cut to exactly that."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    answers = ["the fox", "jumps over " * 3, "the fox", "quick " * 40, "lazy dogs", "a", "mind"]
    asked = {"role": "user", "content": "say"}
    lines = [{"messages": [asked, {"role": "assistant", "content": a}]} for a in answers]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def serve(rows: Path, out: Path, model: str, **settings: Any) -> Scan:
    return scan(rows, out, model=model, engine="vllm", rows_per_unit=2, **settings)


def test_a_scan_is_that_of_the_local_engine(
    rows: Path, model: str, installed: Installed, tmp_path: Path
) -> None:
    installed.traps = Traps(chunk=5, backwards=True)
    bar = Bar()
    served = serve(rows, tmp_path / "served", model, progress=bar)
    local = scan(rows, tmp_path / "local", model=model)
    assert (served.manifest["columns"], served.manifest["counts"]) == (
        local.manifest["columns"],
        local.manifest["counts"],
    )
    ours, theirs = local.tokens(), served.tokens()
    assert ours["position"].max() == 63
    for name in ("example", "position", "token_id", "rank", "top1_id"):
        assert (ours[name] == theirs[name]).all(), name
    for name in ("logprob", "entropy", "entropy_top20", "grad_logits", "grad_head"):
        assert np.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-4), name
    assert json.loads((served.path / "plan.json").read_text())["engine"] == "vllm fake"
    assert [vllm.dtype for vllm in installed.started] == ["float32"]
    assert any("vLLM and transformers differ by at most" in note for note in bar.notes)
    again = serve(rows, served.path, model)
    assert (again.manifest, len(installed.started)) == (served.manifest, 1)


def test_an_interrupted_scan_goes_on_to_the_same_bytes(
    rows: Path, model: str, tmp_path: Path
) -> None:
    def then(bar: Bar) -> None:
        if bar.rows >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve(rows, tmp_path / "stopped", model, progress=Bar(then))
    kept = hashes(tmp_path / "stopped")
    serve(rows, tmp_path / "stopped", model)
    serve(rows, tmp_path / "whole", model)
    assert kept
    assert kept.items() < hashes(tmp_path / "stopped").items()
    assert hashes(tmp_path / "stopped") == hashes(tmp_path / "whole")


def test_another_engine_does_not_go_on_with_it(rows: Path, model: str, tmp_path: Path) -> None:
    serve(rows, tmp_path, model)
    with pytest.raises(BadInput, match='engine "vllm fake" there'):
        scan(rows, tmp_path, model=model, rows_per_unit=2)


def test_without_memory_for_both_it_says_that_they_are_not_compared(
    rows: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eaft_probe.verbs.scan.load_scorer.available_memory", lambda: 1)
    bar = Bar()
    serve(rows, tmp_path, model, progress=bar)
    assert f"{model} is not compared with transformers: it does not fit here" in bar.notes


@pytest.mark.parametrize(
    ("traps", "message"),
    [
        (Traps(softcap=2.0), "of vLLM and transformers differ by .* nats, more than the 0.002"),
        (Traps(mixed_up=True), r"token '.*' at position \d+ has log-probability -\d+\.\d{5} by"),
        (Traps(without_hook=True), "it made no logits of prompts; take --engine local"),
    ],
    ids=["another model", "numbers of another token", "another inside"],
)
def test_a_unit_that_disagrees_leaves_no_part(
    rows: Path, model: str, installed: Installed, tmp_path: Path, traps: Traps, message: str
) -> None:
    installed.traps = traps
    with pytest.raises(ProbeError, match=message):
        serve(rows, tmp_path / "scan", model)
    assert not hashes(tmp_path / "scan")


def test_another_model_runner_is_refused(
    rows: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V2 makes prompt logits elsewhere."""
    monkeypatch.delattr(Runner, "_get_prompt_logprobs_dict")
    with pytest.raises(
        ProbeError, match=r"cannot be used: its model runner is not V1, .*; take --engine local"
    ):
        serve(rows, tmp_path, model)


def test_what_vllm_does_not_take_is_one_line(
    rows: Path, model: str, installed: Installed, tmp_path: Path
) -> None:
    run = partial(serve, rows, tmp_path, model)
    for engine_arg, message in (
        ({"max_model_len": 9}, "max_model_len is set by the program itself; give --max-length"),
        ({"dtype": "float16"}, "dtype is set by the program itself; give --dtype"),
        ({"worker_extension_cls": "m"}, "worker_extension_cls is set by the program itself"),
        ({"tensor_parallel_size": "two"}, "should be a number of GPUs, found 'two'"),
        ({"batch_invariant": True}, "vLLM has no such mode on a CPU; leave it out"),
    ):
        with pytest.raises(BadInput, match=message):
            run(engine_arg=engine_arg)
    installed.served = ["OtherForCausalLM"]
    with pytest.raises(ModelError, match=r"vLLM fake does not serve Llama.*; take --engine local"):
        run()
