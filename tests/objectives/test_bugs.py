"""Bugs that other implementations of these losses have or had, none of which may come back here.

From METHODS sections 2, 3, 5 and 6 and FIELD's list of traps. Tested elsewhere:

- a gate with a gradient; a normaliser of 3.0 or none; statistics of a micro-batch where those of
  the step are meant (MiLe's c, Cayley's floor, TALR's τ), or over untrained tokens; an anchor at
  other positions, or a KL of samples; a weight gradient that is wrong under unequal gates (Liger
  1298); a head without its scale, soft-cap or bias; a crash, a constant or a missing gradient where
  nothing is trained: `test_truth`
- a FLOW median over tokens, or over a rank's examples:
  `test_scanned::test_examples_count_once_however_long`
- means of micro-batch means, gradients × accumulation:
  `test_truth::test_a_step_has_the_gradients_of_the_published_loss`
- means of the ranks' means: `test_ranks`
- k = 1: `test_gates::test_a_field_that_cannot_be_is_refused`
- label smoothing or a router's auxiliary loss that is lost, an adapter on the head that is dropped:
  `test_trainer`
- a reference with its dropout on, under LoRA:
  `test_trainer::test_the_adapter_switched_off_is_the_base_model`; no reference at all there:
  `verbs/test_train::test_a_lora_adapter_is_saved_as_one`
- a label shift that is off by one: `data/test_batches::test_targets_are_the_shift_of_a_plain_loop`
- a mask by the padding id, where that ends a turn:
  `data/test_render::test_the_padding_token_is_trained_where_it_ends_a_turn`
- a mask of zeros where the template has no marks: `data/test_spans`
- no plain loss beside the gated one in the log:
  `verbs/test_train::test_the_log_has_every_column_and_the_groups_add_up`
- (tokens × vocabulary) logits: `test_loss::test_no_tensor_of_tokens_times_vocabulary`
"""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import steps
import tiny
import torch
from published import (
    BASE,
    LOSSES,
    Problem,
    as_step,
    sure,
    told,
    trainer_of,
    trainers_step,
    true_tokens,
)
from steps import Other, collate, off, one_step

from eaft_probe.errors import BadInput
from eaft_probe.model.head import Head, head_of
from eaft_probe.model.loading import load_model
from eaft_probe.objectives.gates import OBJECTIVES, Objective, objective
from eaft_probe.objectives.loss import Gated, Reference, gated_loss
from eaft_probe.objectives.trainer import gated_inputs, refuse

READY = SimpleNamespace(  # a trainer that nothing is to be said against
    args=SimpleNamespace(label_smoothing_factor=0, use_liger_kernel=False),
    compute_loss_func=None,
    accelerator=SimpleNamespace(parallelism_config=None),
)


@pytest.fixture(autouse=True)
def _rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "rows", lambda: list(told()))


def resolved(name: str, **fields: Any) -> Objective:
    return objective(name, fields).resolve(as_step(true_tokens()[1]))


def exactly(logits: torch.Tensor, chosen: Objective) -> Gated:
    """The loss of label 0 under these logits: the head is the identity."""
    head = Head(torch.eye(logits.shape[1]), None)
    labels = torch.zeros(len(logits), dtype=torch.long)
    return gated_loss(head, logits.requires_grad_(), labels, chosen, len(logits))


# --- the entropy and its normaliser ---


def test_uniform_logits_have_the_gate_1() -> None:
    """Not the 0.99858 of the hard-coded 3.0, nor the 3.0 of none."""
    gates = exactly(torch.zeros(3, 50), objective("eaft")).columns["gate"]
    torch.testing.assert_close(gates, torch.ones(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("k", "vocab"), [(20, 7), (50, 30), (2000, 300)])
def test_a_vocabulary_smaller_than_k_is_the_whole_of_it(k: int, vocab: int) -> None:
    """torch.topk raises there; and ln k would keep the gate of a uniform distribution below 1."""
    gates = exactly(torch.zeros(3, vocab), objective("eaft", {"k": k})).columns["gate"]
    torch.testing.assert_close(gates, torch.ones(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [50, 100])
def test_k_is_not_capped_at_32(k: int) -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    gates = exactly(logits, objective("eaft", {"k": k})).columns["gate"]
    top = logits.detach().double().sort(descending=True).values[:, :k].softmax(1)
    expected = -(top * top.log()).sum(1) / math.log(k)
    torch.testing.assert_close(gates.double(), expected, rtol=0, atol=1e-6)


def test_a_certain_token_has_a_gate_under_a_fractional_power() -> None:
    """An entropy of −1e-9 to the power of a half is no number."""
    logits = torch.randn(200, 40, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(200), torch.arange(200) % 40] += torch.linspace(5, 120, 200)
    made = exactly(logits, objective("eaft", {"alpha": 0.5}))
    made.loss.backward()
    assert made.columns["gate"].isfinite().all()
    assert logits.grad.isfinite().all()


def test_the_gate_has_no_gradient(tmp_path: Path) -> None:
    """With one, the gradient of EAFT is a large part off."""
    step = true_tokens()[1]
    plain, gated = zip(*((t.nll, _live_eaft(t.logits)) for t in step), strict=True)
    weight = [true_tokens()[0].lm_head.weight]
    wrong = torch.stack([g * n for g, n in zip(gated, plain, strict=True)]).mean()
    right = torch.stack([g.detach() * n for g, n in zip(gated, plain, strict=True)]).mean()
    a, b = ({"w": torch.autograd.grad(x, weight, retain_graph=True)[0]} for x in (wrong, right))
    found = trainers_step(tmp_path, objective("eaft"), 4)["lm_head.weight"]
    assert off({"w": found}, b) < 1e-5
    assert off(a, b) > 0.1


def _live_eaft(logits: torch.Tensor) -> torch.Tensor:
    top = logits.sort(descending=True).values[:20].log_softmax(0)
    return -(top.exp() * top).sum() / math.log(20)


# --- precision ---


@pytest.mark.parametrize("name", OBJECTIVES)
def test_impossible_tokens_are_as_if_they_were_not(name: str) -> None:
    """0 · (−∞) is no number. Here fewer are possible than EAFT's k, whose entropy is compared
    undivided: the smaller vocabulary has another largest one."""
    problem, n = Problem("bias"), 12
    chosen = objective("eaft", {"compat": "axolotl"}) if name == "eaft" else resolved(name)
    labels = torch.tensor(problem.labels[:n])
    possible = torch.zeros(len(problem.inputs["bias"]), dtype=torch.bool)
    possible[labels] = True
    least = torch.where(possible, problem.inputs["bias"], -math.inf)
    results = []
    for kept, own in ((slice(None), labels), (possible, (possible.cumsum(0) - 1)[labels])):
        hidden = problem.inputs["hidden"][:n].clone().requires_grad_()
        heads = (Head(w[kept], least[kept]) for w in (problem.inputs["weight"], problem.other[0]))
        head, reference = next(heads), Reference(next(heads), problem.other[1][:n])
        base = {c: v[:n] for c, v in (problem.base | problem.of_examples()).items()}
        pull = reference if chosen.anchor else None
        made = gated_loss(head, hidden, own, chosen, n, base, pull)
        made.loss.backward()
        results.append((made.loss.detach(), hidden.grad, *made.columns.columns.values()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bfloat16_autocast_leaves_distributions_in_float32(name: str) -> None:
    """As `--bf16` has it around the forward pass: bfloat16 keeps three digits of a gate."""
    problem, chosen = Problem("plain"), resolved(name)
    reference = Reference(Head(problem.other[0], None), problem.other[1]) if chosen.anchor else None
    made = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            made.append(
                gated_loss(
                    Head(problem.inputs["weight"], None),
                    problem.inputs["hidden"],
                    torch.tensor(problem.labels),
                    chosen,
                    37,
                    problem.base | problem.of_examples(),
                    reference,
                )
            )
    torch.testing.assert_close(made[0].loss, made[1].loss, rtol=1e-6, atol=1e-6)
    for column, values in made[0].columns.columns.items():
        torch.testing.assert_close(made[1].columns[column], values, rtol=1e-6, atol=1e-6)


def test_gates_of_bfloat16_weights_are_float32_numbers() -> None:
    """Scaled by a bfloat16 softmax, DFT's gate is 2⁻⁸ off; a bfloat16 label logit under a float32
    sum gives a negative nll."""
    problem = Problem("plain")
    hidden, weight = (problem.inputs[n].bfloat16() for n in ("hidden", "weight"))
    made = gated_loss(Head(weight, None), hidden, torch.tensor(problem.labels), objective("dft"), 1)
    exact = (hidden.double() @ weight.double().T).log_softmax(1)
    expected = exact[torch.arange(len(hidden)), torch.tensor(problem.labels)]
    assert (made.columns["gate"].double() - expected.exp()).abs().max() < 1e-5
    assert (made.columns["logprob"] <= 0).all()


# --- the denominator ---


@pytest.mark.parametrize("name", ["profit", "masked-sft", "stm", "rho", "eaft"])
def test_gated_tokens_stay_in_the_denominator(name: str, tmp_path: Path) -> None:
    """ProFit divides by the kept tokens in evaluation, DEFT's thresholds in training."""
    step = true_tokens()[1]
    line = log_of_a_step(tmp_path, sure(), objective(name))
    assert 0.05 < line["gate_mean"] < 0.95
    expected = float(sum(LOSSES[name](t, step).detach() for t in step))
    assert line["loss"] * len(step) == pytest.approx(expected, rel=1e-5)


def test_a_short_last_step_is_divided_by_its_own_tokens(tmp_path: Path) -> None:
    """Eight micro-batches are left where a step has sixteen."""
    whole = one_step(tmp_path, objective("eaft"), 8, model=sure())
    short = one_step(tmp_path, objective("eaft"), 1, model=sure(), steps_of=16)
    assert off(short, whole) < 1e-5


def test_a_model_that_takes_no_count_is_not_divided_again(tmp_path: Path) -> None:
    """gemma3, qwen-vl: the Trainer would divide once more by the micro-batches."""
    whole = one_step(tmp_path, objective("eaft"), 8, model=sure())
    model = sure()
    model.accepts_loss_kwargs = False
    assert off(one_step(tmp_path, objective("eaft"), 2, model=model), whole) < 1e-5


def test_the_log_is_of_trained_tokens(tmp_path: Path) -> None:
    """TRL's entropy was over other labels (5617), and one position off (5620)."""
    step = true_tokens()[1]
    gates = [float(_live_eaft(t.logits.detach())) for t in step]
    line = log_of_a_step(tmp_path, sure(), objective("eaft"))
    assert line["count"] == len(step)
    assert line["nll"] == pytest.approx(sum(t.surprise for t in step) / len(step), rel=1e-5)
    assert line["gate_mean"] == pytest.approx(sum(gates) / len(gates), rel=1e-5)
    total = sum(g * t.surprise for g, t in zip(gates, step, strict=True))
    assert line["loss"] == pytest.approx(total / len(step), rel=1e-5)


def log_of_a_step(folder: Path, model: Any, chosen: Objective, **others: Any) -> dict[str, float]:
    trainer = trainer_of(folder, model, chosen, **others)
    trainer.train()
    return dict(trainer.state.log_history[0])


# --- which tokens ---


def test_the_padding_id_as_a_label_is_trained(tmp_path: Path) -> None:
    """Many models pad with the end-of-turn token; a mask by id leaves every end untrained."""
    ended, nll, count = [], 0.0, 0
    for row in told():
        ids, trained = torch.cat([row["input_ids"], torch.tensor([0])]), row["trained"]
        trained = torch.cat([trained, torch.tensor([True])])
        ended.append({"input_ids": ids, "trained": trained})
        logprobs = sure()(input_ids=ids[None]).logits[0, :-1].log_softmax(1)
        nll -= float(logprobs[trained[1:].nonzero()[:, 0], ids[1:][trained[1:]]].sum().detach())
        count += int(trained.sum())
    line = log_of_a_step(tmp_path, sure(), objective("sft"), train_dataset=ended)
    assert line["count"] == count == len(true_tokens()[1]) + len(told())
    assert line["nll"] == pytest.approx(nll / count, rel=1e-5)


def test_a_label_that_nothing_predicts_is_not_counted() -> None:
    """FLOW divides by unshifted labels; the step would be divided by too many tokens."""
    ids = torch.tensor([[7, 8, 9]])
    assert gated_inputs({"input_ids": ids, "labels": ids})["trained"].tolist() == [
        [False, True, True]
    ]


def packed() -> list[dict[str, torch.Tensor]]:
    """The rows one behind another, as a collator without padding makes them."""
    own = [
        {
            "input_ids": r["input_ids"],
            "position_ids": torch.arange(len(r["input_ids"])),
            "labels": r["input_ids"].masked_fill(~r["trained"], -100),
        }
        for r in told()
    ]
    thirds = own[:3], own[3:6], own[6:]
    return [{n: torch.cat([r[n] for r in third]) for n in own[0]} for third in thirds]


@pytest.mark.parametrize("name", ["eaft", "mile", "talr"])
def test_packed_rows_do_not_see_each_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token of a row is not predicted from the row before; TALR's median is over rows,
    not over packs."""
    apart = one_step(tmp_path, objective(name), 4, model=sure())
    monkeypatch.setattr(steps, "rows", packed)
    monkeypatch.setattr(steps, "collate", lambda items: {n: c[None] for n, c in items[0].items()})
    together = one_step(tmp_path, objective(name), 1, model=sure(), steps_of=3)
    assert off(together, apart) < 1e-5


# --- the reference ---


def test_a_reference_has_no_dropout(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "m", tiny.build("gpt2", resid_pdrop=0.5, embd_pdrop=0.5))
    reference, ids = load_model(str(folder)), told()[5]["input_ids"][None]
    before = reference.hidden(ids)
    model = tiny.build("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    log_of_a_step(tmp_path / "run", model, objective("sft-kl"), reference=reference)
    torch.testing.assert_close(reference.hidden(ids), before, rtol=0, atol=0)


class Same(Other):
    """The starting model as reference."""

    def __init__(self) -> None:
        self.model = sure()
        self.head = head_of(self.model)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_pull_towards_the_model_itself_is_none(direction: str, tmp_path: Path) -> None:
    """As at other positions, under another mask or with other padding it would be."""
    chosen = objective("sft-kl", {"direction": direction})
    found = one_step(tmp_path, chosen, 4, model=sure(), reference=Same())
    assert off(found, one_step(tmp_path, objective("sft"), 4, model=sure())) < 1e-5
    line = log_of_a_step(tmp_path, sure(), chosen, reference=Same())
    assert line["loss"] == pytest.approx(line["nll"], rel=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_outside_of_training_has_its_plain_loss(name: str, tmp_path: Path) -> None:
    """TRL's crashed without a count (4096); ASFT's went through the reference as well."""
    chosen = resolved(name)
    model = sure()
    trainer = trainer_of(tmp_path, model, chosen)
    batch = {n: c for n, c in collate(list(told())).items() if n not in BASE}
    step = true_tokens()[1]
    expected = sum(t.surprise for t in step) / len(step)
    assert float(trainer.compute_loss(model, batch)) == pytest.approx(expected, rel=1e-5)


# --- what would replace the loss ---


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("args.label_smoothing_factor", 0.1, "label smoothing"),
        ("args.use_liger_kernel", True, "Liger"),
        ("compute_loss_func", len, "compute_loss_func"),
        ("accelerator.parallelism_config", {"sp_enabled": True}, "sequence parallelism"),
        ("accelerator.parallelism_config", {"cp_enabled": True}, "context parallelism"),
    ],
)
def test_what_would_replace_the_loss_is_named(
    place: str, value: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent cross-entropy under Liger or sequence parallelism; context parallelism cuts the
    labels between ranks but not `trained`."""
    refuse(READY)
    *where, name = place.split(".")
    owner = getattr(READY, where[0]) if where else READY
    value = SimpleNamespace(**value) if isinstance(value, dict) else value
    monkeypatch.setattr(owner, name, value)
    with pytest.raises(BadInput, match=said):
        refuse(READY)
