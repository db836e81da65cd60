"""What a model costs, from its configuration and tokenizer alone: no weights are read."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from eaft_probe.errors import ModelError
from eaft_probe.model.body import named_body
from eaft_probe.model.foreign import loads
from eaft_probe.model.lengths import longest_input
from eaft_probe.model.loading import quiet
from eaft_probe.model.places import find_model
from eaft_probe.model.prefix import empty_prefix


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that the work of a forward pass depends on."""

    parameters: int
    linear: float  # multiplications a token in the body: its weights but the embeddings
    attention: float  # multiplications a pair of positions
    head: int  # multiplications a scored token: V · D
    max_length: int  # tokens
    shares_prefixes: bool  # whether a prefix could be kept; a scan tries before it does


@loads
def load_shape(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[Any, Shape]:
    """The tokenizer and the sizes of a model. Raises `ModelError`.

    Of mixed experts those count that a token is sent to. A model of the hub is not downloaded, but
    for its configuration and tokenizer.
    """
    place = find_model(name, revision, weights=False)
    file = {"gguf_file": place.gguf} if place.gguf else {}
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(
            place.folder, trust_remote_code=trust_remote_code, **file
        )
        config = AutoConfig.from_pretrained(
            place.folder, trust_remote_code=trust_remote_code, **file
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    if model.get_output_embeddings() is None:
        raise ModelError(f"{name} has no head over its vocabulary, so it is no language model")
    return tokenizer, _shape(model, config.get_text_config(), tokenizer)


def _shape(model: Any, config: Any, tokenizer: Any) -> Shape:
    body, layers, heads = (
        named_body(model) or model,
        config.num_hidden_layers,
        config.num_attention_heads,
    )
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    used = _share_of_experts(config)
    looked_up = {id(m.weight) for m in body.modules() if isinstance(m, torch.nn.Embedding)}
    linear = sum(
        p.numel() * (used if ".experts." in name else 1)
        for name, p in body.named_parameters()
        if id(p) not in looked_up
    )
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=linear,
        attention=2 * layers * heads * width,
        head=model.get_output_embeddings().weight.numel(),
        max_length=longest_input(config, tokenizer),
        shares_prefixes=empty_prefix(config) is not None,
    )


def _share_of_experts(config: Any) -> float:
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((getattr(config, n) for n in names if getattr(config, n, None)), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    return float(chosen / experts) if experts and chosen else 1.0
