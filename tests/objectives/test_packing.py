"""Packed rows: each document's gradient is the one it has alone, or the batch is refused."""

import importlib
from typing import Any

import pytest
import tiny
import torch
import transformers
from steps import off
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from eaft_probe import GatedLossMixin
from eaft_probe.errors import BadInput
from eaft_probe.objectives.packing import document_starts

BASE = tiny.LLAMA | {"vocab_size": 100}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
MIXED = {"layer_types": ["mamba", "attention"]}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
SSM = {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8}

# Models whose recurrence must be told where a document begins. (config class, fields)
HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba2": ("Mamba2Config", BASE | SSM),
    "bamba": ("BambaConfig", BASE | MAMBA | {"attn_layer_indices": [1]}),
    "falcon_h1": ("FalconH1Config", BASE | MAMBA | {"mamba_d_ssm": 64}),
    "nemotron_h": (
        "NemotronHConfig",
        BASE
        | {
            "head_dim": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "layers_block_type": ["mamba", "attention"],
        },
    ),
    "qwen3_next": ("Qwen3NextConfig", BASE | DELTA),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        BASE
        | MAMBA
        | MIXED
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24},
    ),
}
# Models that take what tells documents apart, and ignore it.
DEAF: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaConfig", BASE | {"state_size": 8}),
    "jamba": (
        "JambaConfig",
        BASE
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_dt_rank": 4},
    ),
    "bloom": ("BloomConfig", {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
}
APART = {n: tiny.ARCHITECTURES[n] for n in ("llama", "gemma2", "qwen3-moe")}
DOCUMENTS = [torch.arange(5, 5 + n) * 7 % 90 + 3 for n in (9, 12, 4)]


class Mine(GatedLossMixin, Trainer):
    pass


def build(kind: str, fields: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**fields | {"vocab_size": 100})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def packed() -> dict[str, Any]:
    """One row of all documents, as TRL's collator tells them apart."""
    lengths = torch.tensor([len(d) for d in DOCUMENTS])
    borders = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    places = torch.cat([torch.arange(len(d)) for d in DOCUMENTS])[None]
    ids = torch.cat(DOCUMENTS)[None]
    return {
        "input_ids": ids,
        "labels": torch.where(places == 0, -100, ids),
        "position_ids": places,
        "seq_idx": torch.arange(len(lengths)).repeat_interleave(lengths)[None].int(),
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": 12,
        "max_length_k": 12,
    }


def alone(model: Any) -> dict[str, torch.Tensor]:
    """The gradients of the mean nll of all documents, each by itself, without this package."""
    count = sum(len(d) - 1 for d in DOCUMENTS)
    for ids in DOCUMENTS:
        logits = model(input_ids=ids[None]).logits[0, :-1]
        (torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum") / count).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def trainer(model: Any, folder: Any, **options: Any) -> Any:
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[])
    return Mine(model, arguments, **{"objective": "sft"} | options)


def together(model: Any, batch: dict[str, Any], folder: Any) -> dict[str, torch.Tensor]:
    mine = trainer(model, folder)
    model.train()
    count = int((batch["labels"] != -100).sum())
    mine.compute_loss(model, batch, False, count).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", APART)
def test_attention_keeps_documents_apart(name: str, tmp_path) -> None:
    assert off(together(build(*APART[name]), packed(), tmp_path), alone(build(*APART[name]))) < 1e-5


@pytest.mark.parametrize("name", HYBRIDS)
def test_without_its_kernels_a_hybrid_is_refused(name: str, tmp_path) -> None:
    """Older transformers let the documents leak, newer ones say which package is missing."""
    with pytest.raises(BadInput, match="turn packing and padding-free batches off"):
        together(build(*HYBRIDS[name]), packed(), tmp_path)


@pytest.mark.parametrize("name", [n for n in HYBRIDS if n != "granitemoehybrid"])
def test_its_kernels_are_told_where_documents_begin(name: str, monkeypatch, tmp_path) -> None:
    """On a CPU there are none, so the slow path here goes document by document."""
    tell_apart(importlib.import_module(f"transformers.models.{name}.modeling_{name}"), monkeypatch)
    made = together(build(*HYBRIDS[name]), packed(), tmp_path)
    assert off(made, alone(build(*HYBRIDS[name]))) < 1e-5


def test_a_leak_in_attention_is_seen_beside_apt_kernels(monkeypatch, tmp_path) -> None:
    """Granite's hybrid makes its attention mask without the positions."""
    from transformers.models.granitemoehybrid import modeling_granitemoehybrid

    tell_apart(modeling_granitemoehybrid, monkeypatch)
    with pytest.raises(BadInput, match="packed rows leak"):
        together(build(*HYBRIDS["granitemoehybrid"]), packed(), tmp_path)


def tell_apart(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As causal_conv1d, mamba_ssm and fla do."""
    convolve = module.causal_conv1d_fn

    def by_document(x, *more, seq_idx=None, **named):
        parts = x.split(list(seq_idx[0].unique_consecutive(return_counts=True)[1]), 2)
        return torch.cat([convolve(part, *more, **named) for part in parts], 2)

    monkeypatch.setattr(module, "causal_conv1d_fn", one_or_more(by_document, convolve, "seq_idx"))
    if hasattr(module, "mamba2_chunk_scan"):
        monkeypatch.setattr(module, "mamba2_split_conv1d_scan_combined", lambda *_, **__: None)
        scan = module.mamba2_chunk_scan

        def scan_each(x, dt, a, b, c, seq_idx=None, **named):
            lengths = list(seq_idx[0].unique_consecutive(return_counts=True)[1])
            parts = zip(*(t.split(lengths, 1) for t in (x, dt, b, c)), strict=True)
            return torch.cat([scan(x, dt, a, b, c, **named) for x, dt, b, c in parts], 1)

        monkeypatch.setattr(module, "mamba2_chunk_scan", one_or_more(scan_each, scan, "seq_idx"))
    else:
        rule = module.torch_chunk_gated_delta_rule

        def rule_each(q, k, v, g, beta, cu_seqlens=None, **named):
            lengths = cu_seqlens.diff().tolist()
            parts = zip(*(t.split(lengths, 1) for t in (q, k, v, g, beta)), strict=True)
            made = [rule(q, k, v, g=g, beta=b, **named)[0] for q, k, v, g, b in parts]
            return torch.cat(made, 1), None

        monkeypatch.setattr(
            module, "torch_chunk_gated_delta_rule", one_or_more(rule_each, rule, "cu_seqlens")
        )


def one_or_more(several: Any, one: Any, told: str) -> Any:
    def either(*given, **named):
        known = {n: v for n, v in named.items() if n == told or n not in ("seq_idx", "cu_seqlens")}
        return (one if named.get(told) is None else several)(*given, **known)

    return either


@pytest.mark.parametrize("name", DEAF)
def test_a_model_that_ignores_borders_is_refused(name: str, tmp_path) -> None:
    with pytest.raises(BadInput, match="packed rows leak: changing one document moved"):
        together(build(*DEAF[name]), packed(), tmp_path)
    with pytest.raises(BadInput, match="packed rows leak"):
        trainer(build(*DEAF[name]), tmp_path).compute_loss(build(*DEAF[name]), packed())


def test_beside_an_attention_mask_borders_are_not_seen(tmp_path) -> None:
    batch = packed() | {"attention_mask": torch.ones_like(packed()["input_ids"])}
    with pytest.raises(BadInput, match="packed rows leak"):
        together(build(*APART["llama"]), batch, tmp_path)


def test_positions_of_rows_that_are_not_packed_are_no_borders(tmp_path) -> None:
    """Padded at the left, as generation has them: the row begins behind its padding."""
    ids = torch.cat([torch.zeros(3), DOCUMENTS[0]]).long()[None]
    mask = (torch.arange(12) > 2).long()[None]
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.where(mask > 0, ids, -100),
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }
    batch["labels"][0, 3] = -100
    mamba = build(*DEAF["mamba"])
    assert together(mamba, batch, tmp_path)
    assert document_starts(batch).nonzero().tolist() == [[0, 3]]


def test_what_tells_documents_apart_may_be_any_of_three() -> None:
    for name in ("position_ids", "seq_idx", "cu_seq_lens_q"):
        batch = {n: packed()[n] for n in ("input_ids", name)}
        assert document_starts(batch).nonzero()[:, 1].tolist() == [0, 9, 21]


def test_what_the_model_does_not_take_is_refused(tmp_path) -> None:
    model = build(*APART["llama"])
    batch = {n: c for n, c in packed().items() if n in ("input_ids", "labels")}
    body = model.model.forward

    def narrow(
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        cache=None,
    ) -> Any:
        return body(input_ids, attention_mask, position_ids, use_cache=False)

    model.model.forward = narrow
    with pytest.raises(BadInput, match="LlamaModel takes no pixel_values"):
        together(model, batch | {"pixel_values": torch.zeros(1)}, tmp_path)


def test_trl_s_packing_equals_its_rows_alone(tmp_path, model_folder: str) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoTokenizer

    class Packing(GatedLossMixin, trl.SFTTrainer):
        pass

    def first_step(name: str) -> Any:
        model = build(*({**APART, **HYBRIDS}[name]))
        data = Dataset.from_list(
            [{"input_ids": d.tolist(), "labels": d.tolist()} for d in DOCUMENTS]
        )
        arguments = trl.SFTConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            report_to=[],
            bf16=False,
            packing=True,
            max_length=32,
            per_device_train_batch_size=1,
            gradient_checkpointing=False,
        )
        mine = Packing(
            model,
            arguments,
            train_dataset=data,
            objective="sft",
            processing_class=AutoTokenizer.from_pretrained(model_folder),
        )
        batch = next(iter(mine.get_train_dataloader()))
        assert batch["input_ids"].shape == (1, 25)
        return together(model, batch, tmp_path)

    assert off(first_step("llama"), alone(build(*APART["llama"]))) < 1e-5
    with pytest.raises(BadInput, match="turn packing"):
        first_step("bamba")
