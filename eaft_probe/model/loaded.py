"""A model that a program holds: proven as one from files, used, and given back as it was."""

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eaft_probe.errors import BadInput, as_model_error
from eaft_probe.model.lengths import forget_lengths
from eaft_probe.model.loading import CausalLM, keep_trainable, taken_apart_and_proven
from eaft_probe.model.resolve import BLOCKS, LOADED

BLOCK_BYTES = 4096
# What a configuration says of where it came from, or of training, and not of the model.
INCIDENTAL = ("_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype")


@contextmanager
def borrowed(model: object, tokenizer: object) -> Iterator[CausalLM]:
    """The model in evaluation mode, taken apart and proven; nothing of it is changed afterwards.

    Raises `BadInput` for what is no causal language model of transformers or PEFT or has no
    tokenizer, and `ModelError`.
    """
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(whole, PreTrainedModel):
        raise BadInput(
            f"model should be a name, a transformers model or a PEFT model, found a "
            f"{type(model).__name__}; give the model inside it"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise BadInput(f"a loaded model needs tokenizer=, found a {type(tokenizer).__name__}")
    if any(c.is_prompt_learning for c in getattr(model, "peft_config", {}).values()):
        raise BadInput("model has a learned prompt; give a model with an adapter of its layers")
    name = whole.name_or_path or type(whole).__name__
    with _as_it_was(whole):
        keep_trainable(whole)
        with as_model_error(f"cannot use model {name}"):
            known = _with_stop_tokens(tokenizer, whole, name)
            lm = taken_apart_and_proven(whole, known, name)
        yield lm


def identity(model: torch.nn.Module) -> str:
    """sha256 over every parameter's and buffer's name, shape, dtype and 64 evenly spaced blocks.

    Another one than `ModelFiles.identity`, and after an optimizer step another than before. What
    quantized weights are scaled by counts, too.
    """
    tensors = dict(chain(model.named_buffers(), model.state_dict().items()))
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(_blocks(tensor.detach()).cpu().numpy().tobytes())
    return LOADED + digest.hexdigest()


def _blocks(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes, or of many the evenly spaced blocks."""
    data = tensor.contiguous().flatten().view(torch.uint8)
    if len(data) <= BLOCKS * BLOCK_BYTES:
        return data
    starts = torch.linspace(0, len(data) - BLOCK_BYTES, BLOCKS, dtype=torch.float64).long()
    return data[(starts[:, None] + torch.arange(BLOCK_BYTES)).to(data.device)]


def configuration_identity(lm: CausalLM) -> str:
    """sha256 over configuration and tokenizer, which change a model as weights do."""
    config = {k: v for k, v in lm.whole.config.to_dict().items() if k not in INCIDENTAL}
    backend = json.loads(lm.tokenizer.backend_tokenizer.to_str())
    backend |= {"truncation": None, "padding": None}  # of the last call
    text = json.dumps([config, backend, lm.tokenizer.stop_token_ids], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _as_it_was(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode; then every module's own mode, and the frequencies of ropes that depend on
    the longest input so far, come back."""
    modules = [(m, _values(m), dict(m._buffers)) for m in model.modules()]
    model.eval()
    hooks = forget_lengths(model)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, values, buffers in modules:
            vars(module).update(values)
            module._buffers.update(buffers)


def _values(module: torch.nn.Module) -> dict[str, object]:
    return {k: v for k, v in vars(module).items() if isinstance(v, int | float | torch.Tensor)}


def _with_stop_tokens(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str
) -> PreTrainedTokenizerBase:
    """A copy that knows where the model's generation stops, as `load_tokenizer` makes it."""
    for config in (model.generation_config, model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            break
    known = copy.copy(tokenizer)
    known.name_or_path = name
    known.stop_token_ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    return known
