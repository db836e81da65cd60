"""Every objective's gradients against autograd of its published loss, in float64.

The losses are those of `published.py`. Nothing here calls the package but what is tested.
"""

from functools import cache
from pathlib import Path

import pytest
import tiny
import torch
from published import (
    COUNT,
    HEADS,
    LOSSES,
    Given,
    Problem,
    V,
    as_step,
    loss_of,
    masked_sft,
    mean,
    sure,
    told,
    trainer_of,
    trainers_step,
    true_step,
    true_tokens,
)
from steps import Gradients, Keep, build, off

from eaft_probe.columns import measure
from eaft_probe.model.head import Head
from eaft_probe.objectives.gates import OBJECTIVES, objective
from eaft_probe.objectives.loss import Reference, gated_loss
from eaft_probe.objectives.objective import Step as WholeStep

# Float32 against float64: the largest found was 5.4e-6, a norm's weight under DFT. That is the
# body's rounding; plain autograd through all logits in float32 is as far.
NEAR = 1e-5


CASES: list[tuple[str, Given]] = [
    *((name, ()) for name in OBJECTIVES),
    ("eaft", (("alpha", 2),)),
    ("eaft", (("gate", "sigmoid"),)),
    ("eaft", (("gate", "mask"),)),
    ("eaft", (("entropy", "full"),)),
    ("flow", (("normalize", "mean1"),)),
    ("eaft", (("compat", "llamafactory"),)),
    ("eaft", (("compat", "axolotl"),)),
    ("masked-sft", (("conflicts", "scan"),)),
    ("idft", (("detach", "gamma"),)),
    ("rho", (("rank", "example"),)),
    ("sft-kl", (("direction", "reverse"),)),
    ("asft", (("direction", "reverse"),)),
]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_its_loss_written_out(name: str) -> None:
    assert name in LOSSES, "write the published loss, and whatever it needs of a `Token`"


# --- data ---


def test_the_rows_tell_the_objectives_apart() -> None:
    step = true_tokens()[1]
    conflicts = [t for t in step if masked_sft(t, step) == 0]
    assert min(len(conflicts), sum(t.p > 0.9 for t in step), sum(t.p < 0.01 for t in step)) >= 5
    assert 0.2 < mean([float(t.p >= 0.1) for t in step]) < 0.8
    assert 0.2 < mean([float(t.base_prob >= 0.4) for t in step]) < 0.8
    assert min(t.entropy for t in step) < 0.1 < 2 < max(t.entropy for t in step)


# --- a whole step of the trainer ---


def assert_equal(found: Gradients, truth: Gradients) -> None:
    """All together and each by itself; the padding of hidden states gets none."""
    hidden = {n: g[0] for n, g in truth.items() if n.startswith("hidden")}
    parameters = {n: g for n, g in truth.items() if n not in hidden}
    assert not any(found[n][len(g) :].any() for n, g in hidden.items()), "padding has a gradient"
    found = found | {n: found[n][: len(g)] for n, g in hidden.items()}
    for group in (parameters, hidden, *({n: g} for n, g in parameters.items())):
        assert off(found, group) <= NEAR, f"{list(group)}: off by {off(found, group):.1e}"


def cut(monkeypatch: pytest.MonkeyPatch, vocab: int, chunk: int) -> None:
    """The head in products of `chunk` rows, the statistics in slices of half as many."""
    monkeypatch.setitem(measure.PRODUCT_BYTES, "cpu", 4 * vocab * chunk)
    monkeypatch.setitem(measure.SLICE_BYTES, "cpu", 4 * vocab * max(1, chunk // 2))


# Rows of a micro-batch beside rows of a chunk: one by one (and one of them all masked), padded
# in two, padded in one. Fields other than the defaults change the gate alone: once is enough.
CUTS = [(1, 7), (4, 1), (8, 1000)]
CUT_CASES = [(*case, *c) for case in CASES for c in (CUTS[1:2] if case[1] else CUTS)]


@pytest.mark.parametrize(("name", "given", "each", "chunk"), CUT_CASES)
def test_a_step_has_the_gradients_of_the_published_loss(
    name: str, given: Given, each: int, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, tiny.VOCAB, chunk)
    found = trainers_step(tmp_path, objective(name, dict(given)), each)
    assert_equal(found, true_step(name, given))


@pytest.mark.parametrize("architecture", ["llama-tied", "phi", "gemma2", "cohere"])
@pytest.mark.parametrize("name", ["eaft", "cayley", "asft"])
def test_tied_biased_capped_and_scaled_heads_too(
    name: str, architecture: str, tmp_path: Path
) -> None:
    found = trainers_step(tmp_path, objective(name), 4, sure(architecture))
    assert_equal(found, true_step(name, (), architecture))


# --- the loss by itself ---


@cache
def true_loss(name: str, given: Given, head: str) -> tuple[WholeStep, Gradients]:
    problem = Problem(head)
    inputs = {n: t.double().requires_grad_() for n, t in problem.inputs.items()}
    step = problem.step(inputs)
    loss_of(name, given, step, COUNT).backward()
    return as_step(step), {n: t.grad for n, t in inputs.items()}


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("name", "given"), CASES)
def test_hidden_states_weight_and_bias_have_the_published_gradients(
    name: str, given: Given, head: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, V, chunk)
    problem, (step, truth) = Problem(head), true_loss(name, given, head)
    chosen = objective(name, dict(given)).resolve(step)
    given_columns = problem.base | problem.of_examples()
    live = {n: t.requires_grad_() for n, t in problem.inputs.items()}
    module = Head(live["weight"], live.get("bias"), problem.scale, problem.softcap)
    reference = Reference(Head(problem.other[0], None), problem.other[1]) if chosen.anchor else None
    labels = torch.tensor(problem.labels)
    gated_loss(
        module, live["hidden"], labels, chosen, COUNT, given_columns, reference
    ).loss.backward()
    for tensor, gradient in truth.items():
        error = off({tensor: live[tensor].grad}, {tensor: gradient})
        assert error <= NEAR, f"{tensor}: off by {error:.1e}"


# --- nothing to train ---


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_of_untrained_rows_changes_nothing(name: str, tmp_path: Path) -> None:
    untrained, keep = [r | {"trained": r["trained"] & False} for r in told()], Keep()
    trainer = trainer_of(
        tmp_path, sure(), objective(name), train_dataset=untrained, callbacks=[keep]
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == 0
    assert set(keep.gradients) == {n for n, _ in build().named_parameters()}
    assert not any(g.any() for g in keep.gradients.values())
