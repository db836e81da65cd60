"""The gated loss in other people's trainers: `compute_loss_func`, and the mixin before TRL's."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from steps import ROWS, Keep, build, collate, off, one_step, rows
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from eaft_probe import GatedLoss, GatedLossMixin
from eaft_probe.errors import BadInput, ModelError
from eaft_probe.objectives.gates import OBJECTIVES, objective
from eaft_probe.objectives.scan_columns import OF_BASE

LIVE = [
    n
    for n, k in OBJECTIVES.items()
    if not (k().of_step or k().of_scan or k().anchor or {*k().reads} & {*OF_BASE})
]


def labelled(items):
    """A batch as collators of others make it: labels with −100."""
    batch = collate(items)
    labels = torch.where(batch["trained"], batch["input_ids"], -100)
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "labels": labels,
    }


def plain_step(folder, loss, each: int, kind=Trainer, **options):
    """The gradients of a step by a Trainer that knows nothing of this package."""
    keep = Keep()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=each,
        max_steps=1,
        report_to=[],
        gradient_accumulation_steps=ROWS // each,
        max_grad_norm=0,
        use_cpu=True,
        save_strategy="no",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_strategy="no",
    )
    kind(
        build(),
        arguments,
        train_dataset=rows(),
        data_collator=labelled,
        callbacks=[keep],
        **({"compute_loss_func": loss} if loss else {}),
        **options,
    ).train()
    return keep.gradients


@pytest.mark.parametrize("each", [1, 4])
@pytest.mark.parametrize("name", LIVE)
def test_any_trainer_gets_the_same_gradients(name: str, each: int, tmp_path) -> None:
    plain = plain_step(tmp_path, GatedLoss(name), each)
    assert off(plain, one_step(tmp_path, objective(name), 8)) < 1e-5


@pytest.mark.parametrize("name", ["eaft", "talr"])
def test_the_mixin_gives_the_same_gradients(name: str, tmp_path) -> None:
    class Mine(GatedLossMixin, Trainer):
        pass

    mine = plain_step(tmp_path, None, 2, Mine, objective=objective(name))
    assert off(mine, one_step(tmp_path, objective(name), 8)) < 1e-5


def test_sft_of_logits_is_cross_entropy() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 7, 50, requires_grad=True)
    labels = torch.randint(50, (2, 7))
    labels[0, :4] = -100
    outputs = SimpleNamespace(logits=logits)
    wanted = cross_entropy(logits[:, :-1].reshape(-1, 50), labels[:, 1:].reshape(-1))
    (gradient,) = torch.autograd.grad(wanted, logits)
    made = GatedLoss("sft")(outputs, labels)
    made.backward()
    assert made.item() == pytest.approx(wanted.item(), rel=1e-6)
    torch.testing.assert_close(logits.grad, gradient, rtol=1e-4, atol=1e-7)


def test_a_batch_without_a_trained_token_is_a_zero_with_a_graph() -> None:
    logits = torch.randn(1, 4, 30, requires_grad=True)
    loss = GatedLoss()(SimpleNamespace(logits=logits), torch.full((1, 4), -100), 7)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("logits", [None, torch.tensor(0.0), torch.zeros(0)])
def test_a_model_without_logits_is_refused(logits) -> None:
    outputs = SimpleNamespace(logits=logits, loss=torch.tensor(1.0))
    with pytest.raises(BadInput, match="hands over no whole logits"):
        GatedLoss()(outputs, torch.zeros(1, 4))


@pytest.mark.parametrize("labels", [None, torch.zeros(1, 5)])
def test_labels_that_do_not_fit_are_refused(labels) -> None:
    with pytest.raises(BadInput, match="do not fit logits"):
        GatedLoss()(SimpleNamespace(logits=torch.zeros(1, 4, 30)), labels)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - set(LIVE)))
def test_what_needs_more_than_logits_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="needs more than the logits"):
        GatedLoss(name)


def test_fields_are_the_objective_s() -> None:
    assert GatedLoss("eaft", alpha=2).objective == objective("eaft", {"alpha": 2})
    assert GatedLoss(objective("qlog")).objective.name == "qlog"
    with pytest.raises(BadInput, match="no field 'beta'"):
        GatedLoss("eaft", beta=2)
    with pytest.raises(BadInput, match="set the fields on the objective"):
        GatedLoss(objective("eaft"), alpha=2)


def test_a_router_s_loss_is_added_or_asked_for() -> None:
    outputs = SimpleNamespace(logits=torch.zeros(1, 3, 30), aux_loss=torch.tensor(4.0))
    labels = torch.tensor([[1, 2, 3]])
    with pytest.raises(BadInput, match="aux_loss_coef"):
        GatedLoss("sft")(outputs, labels)
    without = GatedLoss("sft", aux_loss_coef=0.0)(outputs, labels, 8)
    with_ = GatedLoss("sft", aux_loss_coef=0.5)(outputs, labels, 8)
    assert with_ - without == pytest.approx(0.5 * 4.0 * 2 / 8)


def test_the_mixin_takes_no_labels_of_other_positions(tmp_path) -> None:
    class Mine(GatedLossMixin, Trainer):
        pass

    trainer = Mine(
        build(),
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True),
        objective=objective("eaft"),
    )
    batch = labelled(rows()[4:6])
    with pytest.raises(BadInput, match="input_ids of their own positions"):
        trainer.compute_loss(
            trainer.model, batch | {"labels": batch["labels"].roll(1, 1)}, False, 3
        )
    with pytest.raises(BadInput, match="needs input_ids and labels"):
        trainer.compute_loss(trainer.model, {"input_ids": batch["input_ids"]}, False, 3)


@pytest.mark.parametrize("name", ["dft", "talr"])
def test_an_evaluation_is_the_plain_nll_and_counts_for_nothing(name: str, tmp_path) -> None:
    class Mine(GatedLossMixin, Trainer):
        pass

    data, batch = rows()[4:6], labelled(rows()[4:6])
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        logging_steps=2,
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        save_strategy="no",
        learning_rate=1e-9,
    )
    trainer = Mine(
        build(),
        arguments,
        train_dataset=data,
        eval_dataset=data,
        data_collator=labelled,
        objective=name,
    )
    nll = build()(**batch).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(nll, rel=1e-4)
    trainer.train()
    line = next(r for r in trainer.state.log_history if "gate_mean" in r)
    assert line["count"] == 2 * int((batch["labels"] != -100).sum())
    assert line["nll"] == pytest.approx(nll, rel=1e-4)


def test_the_mixin_keeps_what_an_objective_reads(tmp_path) -> None:
    class Mine(GatedLossMixin, Trainer):
        pass

    def with_base(items):
        return labelled(items) | {"base_prob": collate(items)["base_prob"]}

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        max_steps=1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        save_strategy="no",
        logging_steps=1,
    )
    trainer = Mine(
        build(), arguments, train_dataset=rows(), data_collator=with_base, objective="stm"
    )
    trainer.train()
    assert any("gate_mean" in r for r in trainer.state.log_history)
    with pytest.raises(BadInput, match="must see its scan first"):
        Mine(build(), arguments, train_dataset=rows(), objective="flow")


def test_packed_rows_are_kept_apart(tmp_path) -> None:
    """Two rows in one, told apart by position_ids, as TRL's padding-free batches have them."""

    class Mine(GatedLossMixin, Trainer):
        pass

    trainer = Mine(
        build(),
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True),
        objective=objective("eaft"),
    )
    trainer.model.train()
    pair = rows()[4:6]
    apart = labelled(pair)
    ids = torch.cat([r["input_ids"] for r in pair])[None]
    labels = torch.cat([apart["labels"][i, : len(r["input_ids"])] for i, r in enumerate(pair)])
    places = torch.cat([torch.arange(len(r["input_ids"])) for r in pair])
    packed = {"input_ids": ids, "labels": labels[None], "position_ids": places[None]}
    packed["labels"][0, len(pair[0]["input_ids"])] = ids[0, len(pair[0]["input_ids"])]
    losses = [trainer.compute_loss(trainer.model, b, False, 5) for b in (apart, packed)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)


def test_a_router_s_loss_is_part_of_the_step(tmp_path) -> None:
    """One micro-batch, sft: what transformers itself gets."""

    def moe():
        torch.manual_seed(0)
        return tiny.build("qwen3-moe", output_router_logits=True, router_aux_loss_coef=0.3)

    batch = labelled(rows())
    theirs = moe()
    loss = theirs(**batch).loss
    loss.backward()
    ours = one_step(tmp_path, objective("sft"), 8, model=moe())
    assert off(ours, {n: p.grad for n, p in theirs.named_parameters()}) < 1e-5
    without = one_step(tmp_path, objective("sft"), 8, model=tiny.build("qwen3-moe"))
    assert off(ours, without) > 1e-3


def test_the_logged_loss_has_the_router_s_part(tmp_path) -> None:
    class Mine(GatedLossMixin, Trainer):
        pass

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        max_steps=1,
        logging_steps=1,
        report_to=[],
        per_device_train_batch_size=ROWS,
        remove_unused_columns=False,
        disable_tqdm=True,
        save_strategy="no",
        train_sampling_strategy="sequential",
    )
    model = tiny.build("qwen3-moe", output_router_logits=True, router_aux_loss_coef=0.3)
    trained = model(**labelled(rows())).loss.item()
    plain = tiny.build("qwen3-moe")(**labelled(rows())).loss.item()
    trainer = Mine(model, arguments, train_dataset=rows(), data_collator=labelled, objective="sft")
    trainer.train()
    line = next(r for r in trainer.state.log_history if "nll" in r)
    assert line["loss"] == pytest.approx(trained, rel=1e-4)
    assert line["nll"] == pytest.approx(plain, rel=1e-4)
    assert trained > plain + 0.1


def test_label_smoothing_beside_the_loss_is_refused(tmp_path) -> None:
    """The Trainer leaves it out where it has a loss function, and says nothing."""
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        max_steps=1,
        report_to=[],
        disable_tqdm=True,
        label_smoothing_factor=0.1,
        remove_unused_columns=False,
        save_strategy="no",
    )
    trainer = Trainer(
        build(),
        arguments,
        train_dataset=rows(),
        data_collator=labelled,
        compute_loss_func=GatedLoss("sft"),
    )
    with pytest.raises(BadInput, match="leave label_smoothing_factor out"):
        trainer.train()


@pytest.mark.parametrize("adapter", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_vectors_before_the_tokens_are_refused(adapter: str, tmp_path) -> None:
    import peft

    class Mine(GatedLossMixin, Trainer):
        pass

    config = getattr(peft, adapter)(task_type="CAUSAL_LM", num_virtual_tokens=2)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ModelError, match="use LoRA"):
        Mine(peft.get_peft_model(build(), config), arguments, objective="sft")


def test_a_column_that_the_objective_reads_is_kept_by_default(tmp_path) -> None:
    """The Trainer drops the columns that a forward pass does not name."""
    from datasets import Dataset

    class Mine(GatedLossMixin, Trainer):
        pass

    data = Dataset.from_dict(
        {n: [[1, 2]] for n in ("input_ids", "labels", "position_ids", "base_prob", "comment")}
    )
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    trainer = Mine(
        build(), arguments, train_dataset=data, objective="stm", data_collator=lambda items: items
    )
    (kept,) = next(iter(trainer.get_train_dataloader()))
    assert kept.keys() == {"input_ids", "labels", "position_ids", "base_prob"}


def test_trl_s_own_loss_and_router_s_weight(tmp_path, model_folder: str) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoTokenizer

    class Mine(GatedLossMixin, trl.SFTTrainer):
        pass

    def made(model, **options):
        arguments = trl.SFTConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            report_to=[],
            bf16=False,
            gradient_checkpointing=False,
            **options,
        )
        data = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}])
        return Mine(
            model,
            arguments,
            train_dataset=data,
            objective="sft",
            processing_class=AutoTokenizer.from_pretrained(model_folder),
        )

    with pytest.raises(BadInput, match="loss_type='dft' would replace the gated loss"):
        made(build(), loss_type="dft")
    batch = labelled(rows())
    losses = {}
    for coefficient in (0.0, 0.1, 0.2):
        trainer = made(
            tiny.build("qwen3-moe", router_aux_loss_coef=0.5), router_aux_loss_coef=coefficient
        )
        trainer.model.train()
        count = int((batch["labels"][:, 1:] != -100).sum())
        losses[coefficient] = trainer.compute_loss(trainer.model, batch, False, count).item()
    assert losses[0.1] > losses[0.0] + 0.1
    assert losses[0.2] - losses[0.0] == pytest.approx(2 * (losses[0.1] - losses[0.0]), rel=1e-4)


def test_before_trl_s_trainer(tmp_path, model_folder: str) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoTokenizer

    class Mine(GatedLossMixin, trl.SFTTrainer):
        pass

    data = Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": f"say {i}"},
                    {"role": "assistant", "content": "the fox " * (1 + i % 5)},
                ]
            }
            for i in range(8)
        ]
    )
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=3,
        logging_steps=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        bf16=False,
        eval_strategy="steps",
        eval_steps=3,
        gradient_checkpointing=False,
    )
    trainer = Mine(
        build(),
        arguments,
        train_dataset=data,
        eval_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(model_folder),
        objective=objective("eaft"),
    )
    trainer.train()
    lines = [r for r in trainer.state.log_history if "gate_mean" in r]
    assert len(lines) == 3
    assert all(0 < r["gate_mean"] < 1 and r["loss"] < r["nll"] for r in lines)
    assert any(r.get("eval_loss", 0) > 0 for r in trainer.state.log_history)
