"""The gated trainer: gradients of a whole step, however it is cut into micro-batches."""

import pytest
import tiny
import torch
from steps import Keep, build, collate, off, one_step, rows
from transformers import AutoModelForCausalLM, TrainingArguments

from eaft_probe.errors import BadInput, ModelError
from eaft_probe.model.head import head_of
from eaft_probe.objectives.forward import AdapterOff, gate
from eaft_probe.objectives.gates import objective
from eaft_probe.objectives.trainer import GatedTrainer


def test_an_anchor_without_reference_is_refused(tmp_path) -> None:
    with pytest.raises(BadInput, match="needs a reference model"):
        one_step(tmp_path, objective("asft"), 8)


def test_the_adapter_switched_off_is_the_base_model() -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(build(), LoraConfig(init_lora_weights=False, lora_dropout=0.5))
    adapted.train()
    off_model = AdapterOff(adapted, head_of(build()))
    ids = rows()[4]["input_ids"][None]
    expected = build().base_model(input_ids=ids)[0]
    torch.testing.assert_close(off_model.hidden(ids), expected)
    assert adapted.training
    assert (adapted.get_base_model().base_model(input_ids=ids)[0] - expected).abs().max() > 0.1


def test_gradient_checkpointing_changes_nothing(tmp_path) -> None:
    plain = one_step(tmp_path, objective("eaft"), 4)
    assert off(one_step(tmp_path, objective("eaft"), 4, gradient_checkpointing=True), plain) < 1e-5


def test_equal_objectives_have_equal_gradients(tmp_path) -> None:
    sft, dft = (one_step(tmp_path, objective(n), 4) for n in ("sft", "dft"))
    assert off(one_step(tmp_path, objective("eaft", {"alpha": 0}), 4), sft) < 1e-6
    assert off(one_step(tmp_path, objective("talr", {"tau": 1, "floor": 0}), 4), dft) < 1e-6
    assert off(one_step(tmp_path, objective("qlog", {"q": 0}), 4), sft) < 1e-6
    assert off(one_step(tmp_path, objective("qlog", {"q": 1}), 4), dft) < 1e-6


def test_saved_models_are_plain_ones(tmp_path) -> None:
    model = gate(build())
    model.save_pretrained(tmp_path)
    ids = rows()[5]["input_ids"][None]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(plain(input_ids=ids).logits, build()(input_ids=ids).logits)


def test_lora_trains_and_a_lora_on_the_head_is_refused(tmp_path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(build(), LoraConfig(target_modules=["q_proj", "v_proj"]))
    gate(adapted.get_base_model())
    keep = Keep()
    keep.on_pre_optimizer_step = lambda *a, model=None, **k: keep.gradients.update(  # type: ignore
        {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        max_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    GatedTrainer(
        adapted,
        arguments,
        train_dataset=rows(),
        data_collator=collate,
        callbacks=[keep],
        objective=objective("eaft"),
    ).train()
    assert keep.gradients
    assert all("lora" in n for n in keep.gradients)
    assert any(g.abs().max() > 0 for g in keep.gradients.values())
    on_head = get_peft_model(build(), LoraConfig(target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ModelError, match="adapter on the head"):
        gate(on_head.get_base_model())


def test_an_auxiliary_loss_that_would_be_lost_is_refused() -> None:
    model = tiny.build("qwen3-moe", output_router_logits=True)
    del model.router_aux_loss_coef  # kept elsewhere
    with pytest.raises(ModelError, match="auxiliary loss"):
        gate(model)


@pytest.mark.parametrize("option", [{"label_smoothing_factor": 0.1}])
def test_what_would_replace_the_loss_is_refused(option, tmp_path) -> None:
    with pytest.raises(BadInput, match="would replace the gated loss"):
        one_step(tmp_path, objective("eaft"), 8, **option)
