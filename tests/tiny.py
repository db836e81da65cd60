"""Tiny random models of many architectures, saved as real folders. Nothing is downloaded."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
VOCAB = 5 + 256 + 39  # the special tokens, every byte, some merges
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind the fox at all. " * 3

# Wide initial weights: logits of several nats, so that a wrong scale or cap shows.
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
SLIDING = {"sliding_window": 4, "head_dim": 8, "query_pre_attn_scalar": 8}
GPT = {k: LLAMA[k] for k in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")} | {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
}

# name → (config class, fields)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", LLAMA),
    "llama-tied": ("LlamaConfig", LLAMA | {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", LLAMA | {"sliding_window": 4}),
    "qwen2": ("Qwen2Config", LLAMA),
    "qwen2-tied": ("Qwen2Config", LLAMA | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", LLAMA | {"head_dim": 8}),
    "gpt2": ("GPT2Config", GPT),
    "gpt-j": ("GPTJConfig", GPT | {"rotary_dim": 4, "tie_word_embeddings": False}),
    "gpt-neox": ("GPTNeoXConfig", LLAMA),
    "phi": ("PhiConfig", LLAMA),
    "gemma2": ("Gemma2Config", LLAMA | SLIDING | {"final_logit_softcapping": 6.0}),
    "gemma3": ("Gemma3TextConfig", LLAMA | SLIDING | {"final_logit_softcapping": 6.0}),
    "gemma3-tied": ("Gemma3TextConfig", LLAMA | SLIDING | {"tie_word_embeddings": True}),
    "glm": ("GlmConfig", LLAMA | {"head_dim": 8}),
    "glm4": ("Glm4Config", LLAMA | {"head_dim": 8}),
    "cohere": ("CohereConfig", LLAMA | {"logit_scale": 0.25}),
    "cohere2": ("Cohere2Config", LLAMA | {"logit_scale": 0.25, "sliding_window": 4}),
    "granite": ("GraniteConfig", LLAMA | {"logits_scaling": 8.0}),
    "mixtral": ("MixtralConfig", LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": ("Qwen3MoeConfig", LLAMA | EXPERTS | {"num_experts": 4, "head_dim": 8}),
}


def build(architecture: str = "llama", seed: int = 0, **fields: Any) -> Any:
    """A random float32 model; no bias is 0 and no norm is 1, so that each one counts."""
    kind, own = ARCHITECTURES[architecture]
    config = getattr(transformers, kind)(**own | fields)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return str(tokenizer.to_str())


def tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte-level BPE over every byte, with a ChatML template."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=64,
    )
    made.chat_template = chat_template
    return made


def save(folder: Path, model: Any) -> Path:
    """The model and a tokenizer as a folder that `load_model` reads."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def token_ids(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    """(rows, length) random ids that are no special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL), VOCAB, (rows, length), generator=generator)
