"""Numbers of models whose passes depend on the length of their input, and how long that may be."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import reference
import tiny
import torch
from transformers import AutoModelForCausalLM

import eaft_probe
from eaft_probe.errors import BadInput
from eaft_probe.model.lengths import (
    NO_LIMIT,
    Border,
    borders,
    in_passes,
    longest_input,
    packed_lengths,
    passes_of,
    regimes,
)
from eaft_probe.model.loading import load_model
from eaft_probe.model.sampling import Generator, Sampling
from eaft_probe.model.token_gradients import WholeModel
from eaft_probe.objectives.forward import gate
from eaft_probe.objectives.gates import objective

AT = 16  # tokens, the border
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": AT,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "longrope": {"rope_parameters": LONG},
    "dynamic": {"rope_parameters": DYNAMIC, "max_position_embeddings": AT},
}
# Around the border, two alike beyond it, and some behind a common beginning.
ROWS = [tiny.token_ids(1, n, seed=n)[0].tolist() for n in (5, AT, AT + 1, 30, 30, 44)]
ROWS += [ROWS[0] + tiny.token_ids(1, n, seed=n)[0].tolist() for n in (3, 4, 25, 26)]


def alone(folder: Path, row: list[int]) -> np.ndarray[Any, Any]:
    """(T − 1,) log-probabilities by a model that has read nothing before."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([row])).logits[0, :-1].double().numpy()
    return np.array([reference.log_softmax(x)[i] for x, i in zip(logits, row[1:], strict=True)])


@pytest.mark.parametrize("kind", ROPES)
def test_rows_on_both_sides_of_the_border_keep_their_numbers(tmp_path: Path, kind: str) -> None:
    folder = tiny.save(tmp_path / "model", tiny.build(**ROPES[kind]))
    rows = [{"input_ids": r, "labels": r} for r in ROWS]
    eaft_probe.scan(rows, tmp_path / "scan", model=str(folder))
    found = pq.read_table(tmp_path / "scan" / "tokens")["logprob"].to_numpy()
    np.testing.assert_allclose(found, np.concatenate([alone(folder, r) for r in ROWS]), atol=1e-4)


@pytest.mark.parametrize("kind", ROPES)
def test_a_step_on_both_sides_of_the_border_trains_on_the_same_numbers(kind: str) -> None:
    """Its loss is that of its rows one by one, and so is its gradient."""
    ids = torch.zeros(3, 30, dtype=torch.long)
    mask = torch.zeros_like(ids)
    lengths = (7, 30, 19)
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = tiny.token_ids(1, length, seed=row)[0], 1
    trained = mask.bool()
    trained[:, 0] = False
    losses, gradients = [], []
    for rows in ([[0, 1, 2]], [[0], [1], [2]]):
        model, loss = gate(tiny.build(**ROPES[kind])), torch.zeros(())
        for r in rows:
            width = max(lengths[i] for i in r)
            loss = (
                loss
                + model(
                    input_ids=ids[r, :width],
                    attention_mask=mask[r, :width],
                    trained=trained[r, :width],
                    objective=objective("sft"),
                    count=53.0,
                )["loss"]
            )
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_packed_rows_on_both_sides_of_the_border_are_refused() -> None:
    model = gate(tiny.build(**ROPES["longrope"]))
    ids = tiny.token_ids(1, 30)
    positions = torch.cat([torch.arange(5), torch.arange(25)])[None]
    trained = positions > 0
    with pytest.raises(BadInput, match="both sides of 16 tokens"):
        model(input_ids=ids, position_ids=positions, trained=trained, reads=("logprob",))


def config(**fields: Any) -> Any:
    return SimpleNamespace(**{"max_position_embeddings": 4096} | fields)


def test_borders_are_read_from_ropes_and_sparse_attention() -> None:
    assert borders(config()) == ()
    assert borders(config(rope_parameters={"rope_type": "yarn", "factor": 4.0})) == ()
    assert borders(config(rope_parameters=LONG)) == (Border(AT, False),)
    assert borders(config(rope_parameters=DYNAMIC)) == (Border(4096, True),)
    both = {"full_attention": LONG, "sliding_attention": {"rope_type": "default"}}
    assert borders(config(rope_parameters=both)) == (Border(AT, False),)
    assert borders(config(index_topk=2048)) == (Border(2048, True),)


def test_regimes_of_two_models() -> None:
    regime = regimes((Border(16, False),), (), (Border(20, True),))
    assert [regime(n) for n in (16, 17, 20, 21, 22)] == [(0, 0), (1, 0), (1, 0), (1, 21), (1, 22)]


def test_passes_bring_rows_back_in_their_order() -> None:
    passes = passes_of([4, 30, 2, 40], regimes((Border(16, False),)))
    assert passes == [([0, 2], 4), ([1, 3], 40)]
    states = torch.randn(4, 40, 3)
    found = in_passes(lambda rows, length: states[rows, :length], passes)
    assert torch.equal(found[[1, 3]], states[[1, 3]])
    assert torch.equal(found[[0, 2], :4], states[[0, 2], :4])


def test_packed_lengths() -> None:
    assert packed_lengths(torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])) == [3, 2, 1, 4]


@pytest.mark.parametrize(
    ("fields", "longest"),
    [
        ({}, 4096),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, 16384),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 8192),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 40.0,
                    "original_max_position_embeddings": 4096,
                },
                "max_position_embeddings": 163840,
            },
            163840,
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
                "max_position_embeddings": 40960,
            },
            131072,
        ),
        ({"rope_parameters": LONG, "max_position_embeddings": 131072}, 131072),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}, 4096),
    ],
)
def test_the_longest_input_knows_the_ropes_factor(fields: dict[str, Any], longest: int) -> None:
    assert longest_input(config(**fields), SimpleNamespace(model_max_length=10**30)) == longest
    assert longest_input(config(**fields), SimpleNamespace(model_max_length=1000)) == 1000


def test_a_model_without_a_limit_is_not_cut() -> None:
    mamba = SimpleNamespace()
    assert longest_input(mamba, SimpleNamespace(model_max_length=10**30)) == NO_LIMIT
    assert longest_input(SimpleNamespace(max_seq_len=2048), object()) == 2048


@pytest.mark.parametrize("kind", ROPES)
def test_an_exact_gradient_is_that_of_the_token_in_its_row(tmp_path: Path, kind: str) -> None:
    folder = tiny.save(tmp_path, tiny.build(**ROPES[kind]))
    row, plain = ROWS[5], AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = [WholeModel(load_model(str(folder)))(row, label) for label in (3, AT, 40)]
    expected = alone(folder, row)
    for label, (norm, nll) in zip((3, AT, 40), found, strict=True):
        assert nll == pytest.approx(-expected[label - 1], abs=1e-4)
        plain.zero_grad()
        logits = plain(input_ids=torch.tensor([row])).logits[0, label - 1]
        torch.nn.functional.cross_entropy(logits, torch.tensor(row[label])).backward()
        squares = [float(p.grad.double().square().sum()) for p in plain.parameters()]
        assert norm == pytest.approx(sum(squares) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("kind", ROPES)
def test_prompts_on_two_sides_of_the_border_are_not_padded_together(
    tmp_path: Path, kind: str
) -> None:
    model = load_model(str(tiny.save(tmp_path, tiny.build(**ROPES[kind]))))
    sampler = Generator(model, Sampling(1, 0, 1.0, 3), 8)
    together = sampler.sample(ROWS, [], "0", lambda *_: None)
    assert together == [sampler.sample([r], [], "0", lambda *_: None)[0] for r in ROWS]
