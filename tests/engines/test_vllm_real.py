"""Scans by vLLM itself against the local engine: `make test-vllm`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from eaft_probe import Scan, rollout, scan
from eaft_probe.errors import ModelError

pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it")
# vLLM's own, of which there are many
pytestmark = pytest.mark.filterwarnings("default")

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
# Steps of fewer tokens than a row has, so that rows are read in pieces.
ENGINE = {"gpu_memory_utilization": 0.1, "max_num_batched_tokens": 40, "max_num_seqs": 4}


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
    rows = [
        [{"role": "user", "content": "say"}, {"role": "assistant", "content": a}] for a in answers
    ]
    path.write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    return path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_its_numbers_are_those_of_the_local_engine(
    data: Path, tmp_path: Path, architecture: str
) -> None:
    model = folder(tmp_path / "model", architecture)
    settings: dict[str, Any] = {"model": model, "rows_per_unit": 3}
    local = scan(data, tmp_path / "local", **settings)
    served = scan(data, tmp_path / "served", engine="vllm", engine_arg=ENGINE, **settings)
    again = scan(data, tmp_path / "served", engine="vllm", engine_arg=ENGINE, **settings)
    assert served.manifest == again.manifest
    assert served.manifest["counts"] == local.manifest["counts"]
    assert json.loads((tmp_path / "served/plan.json").read_text())["engine"].startswith("vllm ")
    assert local.tokens()["position"].max() == CONTEXT - 1
    require_alike(local, served)


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


def test_its_answers_are_those_of_transformers_and_are_scanned(data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "model": folder(tmp_path / "model", "llama"),
        "temperature": 0.0,
        "max_new_tokens": 8,
    }
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
