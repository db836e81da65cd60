"""The chunked loss against autograd through all logits in float64."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eaft_probe.columns import measure
from eaft_probe.model.head import Head
from eaft_probe.objectives.gates import OBJECTIVES, objective
from eaft_probe.objectives.loss import Gated, Reference, gated_loss

N, V, D, COUNT = 37, 101, 16, 50
HEADS = ((False, 1.0, None), (True, 1.0, None), (False, 0.5, None), (True, 2.0, 3.0))
CASES = [(n, {}) for n, kind in OBJECTIVES.items() if not (kind().of_step or kind().of_scan)]
CASES += [("sft-kl", {"direction": "reverse"}), ("eaft", {"gate": "sigmoid"})]


class Problem:
    """Random states, head, labels and base columns; what a loss needs."""

    def __init__(self, bias: bool, scale: float, softcap: float | None) -> None:
        torch.manual_seed(0)
        self.hidden = torch.randn(N, D, requires_grad=True)
        self.weight = torch.randn(V, D, requires_grad=True)
        self.bias = torch.randn(V, requires_grad=True) if bias else None
        self.labels = torch.randint(0, V, (N,))
        self.scale, self.softcap = scale, softcap
        self.base = {"base_prob": torch.rand(N)}
        self.reference = Reference(Head(torch.randn(V, D), None), torch.randn(N, D))

    @property
    def head(self) -> Head:
        return Head(self.weight, self.bias, self.scale, self.softcap)

    @property
    def inputs(self) -> list[torch.Tensor]:
        return [t for t in (self.hidden, self.weight, self.bias) if t is not None]

    def loss(self, chosen) -> Gated:
        reference = self.reference if chosen.anchor else None
        return gated_loss(self.head, self.hidden, self.labels, chosen, COUNT, self.base, reference)


def truth(problem: Problem, chosen, gate: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    """The loss and its gradients by autograd in float64, all logits at once."""
    inputs = [t.detach().double().requires_grad_() for t in problem.inputs]
    logits = inputs[0] @ inputs[1].T + (inputs[2] if len(inputs) == 3 else 0)
    logits = logits * problem.scale
    if problem.softcap:
        logits = problem.softcap * torch.tanh(logits / problem.softcap)
    ours = logits.log_softmax(1)
    loss = -(gate.double() * ours[range(N), problem.labels]).sum()
    if chosen.anchor:
        theirs = problem.reference.hidden.double() @ problem.reference.head.weight.double().T
        theirs = theirs.log_softmax(1)
        p, q = (ours, theirs) if chosen.direction == "reverse" else (theirs, ours)
        loss = loss + chosen.beta * (p.exp() * (p - q)).sum()
    loss = loss / COUNT
    return loss.item(), list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("name", "fields"), CASES)
def test_loss_and_gradients_are_those_of_all_logits(name, fields, head) -> None:
    chosen, problem = objective(name, fields), Problem(*head)
    made = problem.loss(chosen)
    expected, gradients = truth(problem, chosen, made.columns["gate"])
    assert made.loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    (made.loss * 3).backward()  # an outer factor, as a gradient scaler has
    for tensor, gradient in zip(problem.inputs, gradients, strict=True):
        assert (tensor.grad - 3 * gradient).abs().max() < 3e-5 * max(1, gradient.abs().max())


def test_gate_is_the_objective_of_the_live_columns() -> None:
    problem = Problem(False, 1.0, None)
    gate = problem.loss(objective("eaft")).columns["gate"]
    logits = (problem.hidden @ problem.weight.T).detach().double()
    for row in range(N):
        largest = logits[row].sort(descending=True).values[:20].softmax(0)
        entropy = -sum(float(p) * math.log(float(p)) for p in largest)
        assert float(gate[row]) == pytest.approx(entropy / math.log(20), abs=1e-5)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for rows in (1, 5, N):
        monkeypatch.setitem(measure.PRODUCT_BYTES, "cpu", 4 * V * rows)
        monkeypatch.setitem(measure.SLICE_BYTES, "cpu", 4 * V * max(1, rows // 2))
        problem = Problem(True, 1.0, None)
        made = problem.loss(objective("asft"))
        made.loss.backward()
        results.append([made.loss.detach(), *(t.grad for t in problem.inputs)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_no_tensor_of_tokens_times_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measure.PRODUCT_BYTES, "cpu", 4 * V * 8)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    problem = Problem(False, 1.0, None)
    with Watch():
        problem.loss(objective("eaft")).loss.backward()
    assert V * D <= largest < N * V


def test_no_token_gives_a_zero_with_a_graph() -> None:
    problem = Problem(True, 1.0, None)
    made = gated_loss(problem.head, problem.hidden[:0], problem.labels[:0], objective("sft"), COUNT)
    made.loss.backward()
    assert made.loss.item() == 0
    assert all(not t.grad.any() for t in problem.inputs)


def test_a_frozen_head_gets_no_gradient() -> None:
    problem = Problem(True, 1.0, None)
    problem.weight.requires_grad_(False)
    problem.bias.requires_grad_(False)
    problem.loss(objective("sft")).loss.backward()
    assert problem.weight.grad is None
    assert problem.hidden.grad is not None


def test_unequal_micro_batches_add_up_to_the_whole_batch() -> None:
    whole, split = Problem(False, 1.0, None), Problem(False, 1.0, None)
    whole.loss(objective("eaft")).loss.backward()
    for part in (slice(0, 3), slice(3, 30), slice(30, N)):
        gated_loss(
            split.head, split.hidden[part], split.labels[part], objective("eaft"), COUNT
        ).loss.backward()
    for a, b in zip(whole.inputs, split.inputs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)


def test_bfloat16_weights_get_gradients_of_their_type() -> None:
    problem = Problem(False, 1.0, None)
    weight = problem.weight.detach().bfloat16().requires_grad_()
    hidden = problem.hidden.detach().bfloat16().requires_grad_()
    made = gated_loss(Head(weight, None), hidden, problem.labels, objective("sft"), COUNT)
    made.loss.backward()
    logits = hidden.detach().double().requires_grad_()
    exact = torch.nn.functional.cross_entropy(
        logits @ weight.detach().double().T, problem.labels, reduction="sum"
    )
    (gradient,) = torch.autograd.grad(exact / COUNT, logits)
    assert weight.grad.dtype == hidden.grad.dtype == torch.bfloat16
    assert (hidden.grad.double() - gradient).abs().max() < 0.01 * gradient.abs().max()


def test_a_second_backward_is_refused() -> None:
    loss = Problem(False, 1.0, None).loss(objective("sft")).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already differentiated"):
        loss.backward()


def test_an_anchor_without_reference_is_refused() -> None:
    problem = Problem(False, 1.0, None)
    with pytest.raises(ValueError, match="reference"):
        gated_loss(problem.head, problem.hidden, problem.labels, objective("asft"), COUNT)
