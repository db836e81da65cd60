"""Whether the numbers are right for every causal model class that a tiny config builds.

Each class of transformers' mapping is given random weights and scanned: rows alone, padded to a
longer one, behind a shared prefix, and, where it has rotary positions, on both sides of a border of
LongRoPE and of dynamic NTK. Every log-probability is compared with the model's own, row by row, in
float64. A refusal is honest; exit status 1 where a number is wrong.

    python benchmarks/architectures.py [--only llama --only mamba]
"""

import argparse
import copy
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from contestants import print_table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

import eaft_probe
from eaft_probe.errors import ProbeError

VOCAB, FIRST = 300, 5  # ids below FIRST may be special
BORDER = 16  # tokens, of the rope kinds whose frequencies depend on the length
CLOSE = 1e-4  # nats, or this share of a log-probability beyond 1 nat
SECONDS = 60  # of one column, whose model would not be tiny
COLUMNS = ("alone", "padded", "prefix", "longrope", "dynamic")

# Field of a config → its value in a tiny one. Only fields that the config has are set.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "n_words", "text_vocab_size", "audio_vocab_size"), VOCAB),
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "dim",
            "emb_dim",
            "embedding_size",
            "word_embed_proj_dim",
            "decoder_hidden_size",
            "expansion_embed",
        ),
        32,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "decoder_layers",
            "encoder_layers",
            "num_decoder_layers",
            "num_blocks",
        ),
        4,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "num_decoder_attention_heads",
        ),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "d_inner",
            "n_inner",
            "moe_intermediate_size",
            "dim_ff",
            "dff",
            "ffn_hidden_size",
            "feed_forward_size",
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            "moe_shared_expert_intermediate_size",
        ),
        48,
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "moe_top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1),
    **dict.fromkeys(("head_dim", "attention_head_dim", "v_head_dim", "dim_head"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "mamba_state_size"), 8),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "mamba2_chunk_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 8),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    "qk_head_dim": 16,
    **dict.fromkeys(("index_n_heads",), 4),
    "index_head_dim": 16,
    "index_topk": 6,
    "vocab_size_per_layer_input": VOCAB,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 8,
    "lm_head_multiplier": 0.5,
    "logits_scaling": 4.0,
    "logit_scale": 0.25,
    "mamba_d_ssm": 64,
    "final_logit_softcapping": 3.0,
    "logits_soft_cap": 3.0,
    "output_logit_soft_cap": 3.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 8,
    "is_decoder": True,
    "causal": True,
    "is_encoder_decoder": False,
    "tie_word_embeddings": False,
}
# What single classes need besides.
MLA = {"num_key_value_heads": 4}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "axk1",
            "axk2",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "longcat_flash",
            "minicpm3",
            "youtu",
        ),
        MLA,
    ),
    **dict.fromkeys(("dots3_note", "dots3_note_text"), MLA),
    **dict.fromkeys(
        ("kimi_linear", "bailing_hybrid"),
        {"layer_types": ["linear_attention", "full_attention"] * 2} | MLA,
    ),
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "hybrid_layer_ids": [1, 3]},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "mamba2": {"num_heads": 8},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 16)},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(kind: str, **more: Any) -> Any:
    return _tiny(CONFIG_MAPPING[kind], OWN.get(kind, {}) | more)


def _tiny(config_class: Any, more: dict[str, Any]) -> Any:
    plain = config_class()
    parts = {
        n: _tiny(type(part), OWN.get(part.model_type, {})).to_dict()
        for n in config_class.sub_configs
        if (part := getattr(plain, n, None)) is not None
    }
    fields = {n: v for n, v in SMALL.items() if n not in more and _has(config_class, plain, n, v)}
    return config_class(**fields | parts | more)


def _has(config_class: Any, plain: Any, name: str, value: Any) -> bool:
    """Whether it is a field that can be set."""
    try:
        return hasattr(plain, name) and config_class(**{name: value}) is not None
    except (AttributeError, NotImplementedError):
        return False
    except Exception:  # it does not fit the other defaults
        return True


def tiny_model(config: Any) -> Any:
    """Random weights; no bias is 0 and no norm is 1, so that each one counts."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "A_log" not in name:
                parameter += 0.1 * torch.randn_like(parameter)
            elif parameter.dim() == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
        model(input_ids=torch.tensor([ids(9, 9)]), use_cache=False)  # whether the sizes fit
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="t0", eos_token="t2")


def ids(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST, VOCAB, (length,), generator=generator).tolist()


def rows(kind: str) -> list[list[int]]:
    """The rows of one column of the table."""
    if kind == "alone":
        return [ids(n, n) for n in (3, 21)]
    if kind == "padded":
        return [ids(n, n) for n in (3, 40, 9, 20)]
    if kind == "prefix":
        return [ids(14, 0) + ids(n, n) for n in (3, 5, 9, 12)]
    lengths = (BORDER - 5, BORDER, BORDER + 1, BORDER + 14, BORDER + 14)
    return [ids(n, at) for at, n in enumerate(lengths)] + [
        ids(BORDER - 4, 0) + ids(n, n) for n in (2, 3, 20, 24)
    ]


def rope_fields(config: Any, kind: str) -> dict[str, Any] | None:
    """The config's fields under which its rope has a border; None where it has no plain rope."""
    rope = getattr(config, "rope_parameters", None)
    if not rope or rope.get("rope_type") != "default":
        return None
    theta = {n: rope[n] for n in ("rope_theta", "partial_rotary_factor") if n in rope}
    if kind == "dynamic":
        return {
            "rope_parameters": theta | {"rope_type": kind, "factor": 4.0},
            "max_position_embeddings": BORDER,
        }
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = getattr(config, "qk_rope_head_dim", None) or width
    half = int(width * theta.get("partial_rotary_factor", 1.0)) // 2
    return {
        "rope_parameters": theta
        | {
            "rope_type": kind,
            "short_factor": [1.0] * half,
            "long_factor": [4.0] * half,
            "factor": 8.0,
            "original_max_position_embeddings": BORDER,
        }
    }


def wanted(model: Any, row: list[int]) -> np.ndarray:
    """(T − 1,) log-probabilities of the row's tokens but the first, by the model alone.

    A copy of the model: one with dynamic NTK remembers the lengths that it has seen.
    """
    with torch.no_grad():
        logits = (
            copy.deepcopy(model)(input_ids=torch.tensor([row]), use_cache=False).logits[0].double()
        )
    return logits.log_softmax(-1)[:-1].gather(1, torch.tensor(row[1:])[:, None])[:, 0].numpy()


def outcome(folder: Path, kind: str) -> str:
    """right, refused: why, or wrong: by how much."""
    given = rows(kind)
    data = [{"input_ids": row, "labels": row} for row in given]
    tokens = 1 if kind == "alone" else 2048
    out = folder / f"scan-{kind}"
    try:
        eaft_probe.scan(data, out, model=str(folder), tokens_per_batch=tokens, threads=1)
    except ProbeError as error:
        return f"refused: {error}"
    table = pq.read_table(out / "tokens")
    found = table["logprob"].to_numpy()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    truth = np.concatenate([wanted(model, row) for row in given])
    if len(found) != len(truth):
        return f"wrong: {len(found)} of {len(truth)} tokens"
    error = float(np.max(np.abs(found - truth) / np.maximum(np.abs(truth), 1)))
    return "right" if error <= CLOSE else f"wrong: {error:.2g}"


def outcomes(kind: str) -> Iterator[tuple[str, str]]:
    """(column, outcome) of one model class."""
    try:
        config = tiny_config(kind)
        model = tiny_model(config)
    except Exception as error:  # whatever a config raises that is too small for its class
        yield "alone", f"not built: {type(error).__name__}: {error}"
        return
    for column in COLUMNS:
        fields: dict[str, Any] | None = {}
        if column in ("longrope", "dynamic"):
            try:
                if not (fields := rope_fields(config, column)):
                    continue
                model = tiny_model(tiny_config(kind, **fields))
            except Exception:  # this class has no such rope
                continue
        with tempfile.TemporaryDirectory(prefix="architectures-") as folder:
            model.save_pretrained(folder)
            tiny_config(kind, **fields or {}).save_pretrained(folder)  # not its text part alone
            tokenizer().save_pretrained(folder)
            signal.alarm(SECONDS)
            try:
                yield column, outcome(Path(folder), column)
            except TooSlow:
                yield column, "not built: too slow to be tiny"
            except Exception as error:
                yield column, f"crashed: {type(error).__name__}: {error}"
            finally:
                signal.alarm(0)


class TooSlow(BaseException):
    """No `Exception`, which a loader would take for its own."""


def _too_slow(*_: Any) -> None:
    raise TooSlow


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", action="append", help="a model type; several times for several")
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, _too_slow)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    table, totals, reasons = [], dict[str, Counter[str]](), []
    for kind in args.only or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        found = dict(outcomes(kind))
        print(kind, {k: v[:160] for k, v in found.items()}, file=sys.stderr, flush=True)
        table.append((kind, *(found.get(c, "").split(":")[0] for c in COLUMNS)))
        for column, said in found.items():
            totals.setdefault(column, Counter())[said.split(":")[0]] += 1
            if said != "right":
                reasons.append((kind, column, said))
    print_table(("model type", *COLUMNS), table)
    for column in COLUMNS:
        print(f"{column}: {dict(totals.get(column, {}))}")
    for kind, column, said in reasons:
        print(f"{kind}, {column}: {' '.join(said.split())[:200]}")
    return int(any(c[bad] for c in totals.values() for bad in ("wrong", "crashed")))


if __name__ == "__main__":
    sys.exit(main())
