"""Scans by vLLM itself against the local engine: `make test-vllm`."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from forked import SERVER, Forked
from running import Bar, hashes

from eaft_probe import Scan, rollout, scan
from eaft_probe.errors import ModelError, ProbeError

pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it")
# vLLM's own, of which there are many
pytestmark = pytest.mark.filterwarnings("default")
SERVER.set_forkserver_preload(["eaft_probe.verbs.scan.scan", "vllm"])

CONTEXT = 64
ARCHITECTURES = {
    "llama": {},
    # Capped logits. With capped attention, vLLM 0.32 on a CPU is 0.005 nats off, and refused.
    "gemma2": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "tie_word_embeddings": True,
        "attn_logit_softcapping": None,
    },
}
# Steps of fewer tokens than a row has, so that rows are read in pieces. With the size of its cache
# given, vLLM starts without a trial and whatever else fills the machine's memory.
ENGINE = {"kv_cache_memory_bytes": 1 << 22, "max_num_batched_tokens": 40, "max_num_seqs": 4}


def folder(path: Path, architecture: str) -> str:
    fields: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    fields |= {"max_position_embeddings": CONTEXT, **ARCHITECTURES[architecture]}
    tiny.build(architecture, **fields).save_pretrained(path)
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations, two of them the same, one longer than the context."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    answers = ["the fox", "jumps over the lazy dog " * 2, "the fox", "a", "quick " * 40]
    answers += [f"{n} dogs " * (n % 5) for n in range(1, 8)]
    rows = [
        [{"role": "user", "content": "say"}, {"role": "assistant", "content": a}] for a in answers
    ]
    path.write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return folder(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def served(data: Path, llama: str, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """By this process alone, undisturbed."""
    return serve(data, tmp_path_factory.mktemp("served"), llama)


def serve(data: Path, out: Path, model: str, *, engine_arg: Any = None, **settings: Any) -> Scan:
    engine_arg = ENGINE | (engine_arg or {})
    settings = {"rows_per_unit": 3} | settings
    return scan(data, out, model=model, engine="vllm", engine_arg=engine_arg, **settings)


def test_its_numbers_are_those_of_the_local_engine(
    data: Path, llama: str, served: Scan, tmp_path: Path
) -> None:
    local = scan(data, tmp_path, model=llama)
    assert served.manifest["counts"] == local.manifest["counts"]
    assert json.loads((served.path / "plan.json").read_text())["engine"].startswith("vllm ")
    assert local.tokens()["position"].max() == CONTEXT - 1
    require_alike(local, served)
    again = serve(data, served.path, llama)
    assert served.manifest == again.manifest


def test_capped_logits(data: Path, tmp_path: Path) -> None:
    model = folder(tmp_path / "model", "gemma2")
    local = scan(data, tmp_path / "local", model=model)
    require_alike(local, serve(data, tmp_path / "served", model))


def scan_that_is_killed(data: Path, out: Path, model: str) -> None:
    def then(bar: Bar) -> None:
        if bar.rows >= 6:
            os.kill(os.getpid(), signal.SIGKILL)

    serve(data, out, model, progress=Bar(then))


def test_killed_and_finished_by_two_workers_it_has_the_same_bytes(
    data: Path, llama: str, served: Scan, tmp_path: Path, forked_workers: None
) -> None:
    """A unit is scheduled alike whenever and by whomever it is scored."""
    process = Forked(scan_that_is_killed, data, tmp_path / "s", llama)
    assert process.wait() == -signal.SIGKILL, process.communicate()
    kept = hashes(tmp_path / "s")
    assert kept
    serve(data, tmp_path / "s", llama, workers=2)
    assert kept.items() < hashes(tmp_path / "s").items()
    assert hashes(tmp_path / "s") == hashes(served.path)


def test_requests_that_are_thrown_out_are_read_again(
    data: Path, llama: str, served: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of three blocks, and rows of two that grow side by side."""
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted, preempt = list[str](), Scheduler._preempt_request

    def counting(self: Any, request: Any, *given: Any, **named: Any) -> Any:
        preempted.append(request.request_id)
        return preempt(self, request, *given, **named)

    monkeypatch.setattr(Scheduler, "_preempt_request", counting)
    small = {"num_gpu_blocks_override": 4, "block_size": 32, "long_prefill_token_threshold": 10}
    require_alike(served, serve(data, tmp_path, llama, engine_arg=small, rows_per_unit=12))
    assert preempted


def test_two_ranks_of_its_own(
    data: Path, llama: str, served: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has half of the weights and of the vocabulary, and the first gives the columns."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    require_alike(served, serve(data, tmp_path, llama, engine_arg={"tensor_parallel_size": 2}))


def test_an_argument_that_it_does_not_know(data: Path, llama: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^vLLM does not start with .*nonsense=1: .*nonsense"):
        serve(data, tmp_path, llama, engine_arg={"nonsense": 1})


def require_alike(local: Scan, served: Scan) -> None:
    ours, theirs = local.tokens(), served.tokens()
    for name in ("example", "position", "token_id", "rank", "top1_id"):
        assert (ours[name] == theirs[name]).all(), name
    for name in ("logprob", "entropy", "entropy_top20", "varentropy", "prob", "concentration"):
        assert np.abs(ours[name] - theirs[name]).max() < 2e-4, name
    assert np.abs(ours["grad_head"] / theirs["grad_head"] - 1).max() < 1e-3


def test_a_model_that_it_does_not_serve_is_refused(data: Path, tmp_path: Path) -> None:
    tiny.build("gpt2").save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace("GPT2LMHeadModel", "GPT2Unheard"))
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="does not serve GPT2Unheard; take --engine local"):
        scan(data, tmp_path / "scan", engine="vllm", model=str(tmp_path / "model"))


def test_its_answers_are_those_of_transformers_and_are_scanned(
    data: Path, llama: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"model": llama, "temperature": 0.0, "max_new_tokens": 8}
    local = rollout(data, tmp_path / "local.jsonl", then_scan=str(tmp_path / "own"), **settings)
    served = rollout(
        data,
        tmp_path / "served.jsonl",
        engine="vllm",
        engine_arg=ENGINE,
        then_scan=str(tmp_path / "scan"),
        **settings,
    )
    assert served.path.read_text() == local.path.read_text()
    assert local.scan is not None
    assert served.scan is not None
    require_alike(local.scan, served.scan)


def test_an_interrupted_rollout_goes_on_to_the_same_answers(
    data: Path, llama: str, tmp_path: Path
) -> None:
    """On a CPU, vLLM 0.32 draws nothing after a prompt that it read in pieces."""

    def then(bar: Bar) -> None:
        if bar.rows >= 4:
            raise KeyboardInterrupt

    def answer(out: str, bar: Bar, step: int = 512) -> bytes:
        settings: dict[str, Any] = {"engine": "vllm", "max_new_tokens": 8, "rows_per_unit": 3}
        settings["engine_arg"] = ENGINE | {"max_num_batched_tokens": step}
        done = rollout(data, tmp_path / out, model=llama, progress=bar, **settings)
        return done.path.read_bytes()

    with pytest.raises(KeyboardInterrupt):
        answer("stopped.jsonl", Bar(then))
    stopped = answer("stopped.jsonl", Bar())
    assert stopped == answer("whole.jsonl", Bar())
    with pytest.raises(ProbeError, match="CPU Generator does not use offset; take --engine local"):
        answer("pieces.jsonl", Bar(), step=40)
