"""The vLLM engine over a fake that does what the real one may do. `test_vllm_real.py` has vLLM."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from fake_vllm import CONTEXT, VOCAB, WEIGHT, WIDTH, Llm, Traps, states

from eaft_probe import scan
from eaft_probe.columns.measure import TokenColumns
from eaft_probe.columns.statistics import chosen_statistics
from eaft_probe.data.batches import TokenBatch, Window, batch_of
from eaft_probe.engines.vllm_model import VllmModel
from eaft_probe.errors import BadInput, ProbeError
from eaft_probe.model.head import Head

NAMES = [s.name for s in chosen_statistics([], reference=False)]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = SimpleNamespace(__version__="fake", SamplingParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", vllm)


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
            assert columns["rank"][n] == reference.rank(truth)
            norm = reference.norm(reference.output_gradient(truth)) * reference.norm(truth.hidden)
            assert columns["grad_head"][n] == pytest.approx(norm, rel=1e-4)
            n += 1
    assert n == len(columns["rank"]) > 20


REFUSED = {
    "rows off by one": (Traps(early=1, chunk=5), "it made logits of 30 of 33 tokens"),
    "numbers of another token": (Traps(mixed_up=True), "token .* by its logits, and .* by its own"),
    "a beginning that is not computed": (Traps(cached=3), "it made logits of 27 of 33 tokens"),
    "another inside": (Traps(without_hook=True), "it made no logits of prompts"),
    "logits of fewer tokens": (Traps(padding=-1), "its logits are 49 of 50 tokens"),
}


@pytest.mark.parametrize(("traps", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(batch: TokenBatch, traps: Traps, message: str) -> None:
    with pytest.raises(ProbeError, match=f"vLLM fake cannot be used: {message}"):
        measured(batch, traps)


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
