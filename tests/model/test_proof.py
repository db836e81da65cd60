"""What is proven at load: no position sees a later one, padding and length change nothing."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from transformers import AutoModelForCausalLM

from eaft_probe.errors import ModelError
from eaft_probe.model.body import UpToHead
from eaft_probe.model.loading import CausalLM, load_model

IDS = tiny.token_ids(2, 13)


def saved(folder: Path, config: Any, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    return tiny.save(folder, AutoModelForCausalLM.from_config(config, dtype=dtype))


def bidirectional(**more: Any) -> Any:
    fields = tiny.LLAMA | tiny.SLIDING | {"sliding_window": 16} | more
    return transformers.Gemma3TextConfig(**fields, use_bidirectional_attention=True)


ENCODERS = {
    "gemma3": bidirectional(),
    "bert": transformers.BertConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
    ),
    "xlm": transformers.XLMConfig(
        vocab_size=tiny.VOCAB, emb_dim=32, n_layers=2, n_heads=4, embed_init_std=0.3, init_std=0.3
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_models_that_see_later_tokens_are_refused(tmp_path: Path, kind: str, dtype: str) -> None:
    folder = saved(tmp_path, ENCODERS[kind])
    with pytest.raises(ModelError, match="change with later tokens") as caught:
        load_model(str(folder), dtype=dtype)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_case_that_was_scanned_is_refused(shared: Path, dtype: str) -> None:
    folder = shared / "cases" / "models" / "bidirectional" / "model"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    with pytest.raises(ModelError, match="change with later tokens"):
        load_model(str(folder), dtype=dtype)


def test_a_model_whose_padding_counts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Causal, but its states hang on how many tokens there are."""
    plain = transformers.LlamaModel.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = plain(self, *args, **kwargs)
        output.last_hidden_state = output.last_hidden_state * output.last_hidden_state.shape[1]
        return output

    monkeypatch.setattr(transformers.LlamaModel, "forward", forward)
    with pytest.raises(ModelError, match="change with the length of the input"):
        load_model(str(tiny.save(tmp_path, tiny.build())))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cap_that_half_precision_would_hide_is_missed(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Capped at 30, logits up to 8 move by 2 %: less than the hidden states' tolerance."""
    monkeypatch.setattr("eaft_probe.model.head.CAPS", ())
    folder = tiny.save(tmp_path, tiny.build("gemma2", final_logit_softcapping=30.0))
    with pytest.raises(ModelError, match="not its head over its last hidden states"):
        load_model(str(folder), dtype=dtype)


def logits_of(folder: Path, model: CausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = plain(input_ids=IDS).logits
    return model.head.logits(model.hidden(IDS).flatten(0, 1)).view_as(wanted), wanted


SIZES = {
    "vocab_size": tiny.VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA = {
    "mamba_d_ssm": 64,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
FOUND = {
    "a transform between body and head": transformers.ModernBertDecoderConfig(**SIZES),
    "a body of no usual name": transformers.Llama4TextConfig(
        **SIZES, intermediate_size_mlp=48, num_key_value_heads=2, head_dim=8, num_local_experts=2
    ),
    "a multiplier": transformers.FalconH1Config(
        **SIZES, **MAMBA, num_key_value_heads=2, lm_head_multiplier=0.5
    ),
    "a cap of another name": transformers.RecurrentGemmaConfig(
        **SIZES | {"num_hidden_layers": 3},
        num_key_value_heads=2,
        lru_width=32,
        logits_soft_cap=3.0,
    ),
}


@pytest.mark.parametrize("what", FOUND)
def test_bodies_and_heads_are_found(tmp_path: Path, what: str) -> None:
    folder = saved(tmp_path, FOUND[what])
    model = load_model(str(folder))
    ours, wanted = logits_of(folder, model)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-4)
    assert isinstance(model.body, UpToHead) == ("transform" in what)


def test_a_model_that_answers_a_prefix_with_other_shapes_shares_none(tmp_path: Path) -> None:
    """XLM drops tokens of what comes behind a cache."""
    fields = {"vocab_size": tiny.VOCAB, "emb_dim": 32, "n_layers": 2, "n_heads": 4}
    model = load_model(str(saved(tmp_path, transformers.XLMConfig(**fields, causal=True))))
    assert model.cost is None
    assert "states of shape" in str(model.unshared)


def test_why_prefixes_are_not_shared_is_said(tmp_path: Path) -> None:
    model = load_model(str(tiny.save(tmp_path, tiny.build("mistral"))))
    assert model.cost is None
    assert model.unshared == "its layers keep more than keys and values of all tokens"
