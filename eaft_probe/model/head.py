"""The last projection: hidden states → logits in float32, with its scale and soft-cap."""

import copy
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from eaft_probe.errors import ModelError

# Half-precision head weights on a CPU are widened this many rows at a time: 4,096 of width 4,096
# are 64 MB, where a whole 150k-token head would be 2.5 GB.
WIDEN_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Head:
    """logits = softcap · tanh(scale · (h Wᵀ + b) / softcap), or without the tanh."""

    weight: torch.Tensor  # (V, D)
    bias: torch.Tensor | None  # (V,)
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0]

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """(n, D) hidden states → (n, V) float32 logits, accumulated in float32.

        `out` (n, V) float32 is overwritten where given.
        """
        return self.shaped(self.product(hidden, out))

    def product(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """(n, D) → (n, V) h Wᵀ + b in float32."""
        if out is None:
            out = hidden.new_empty((len(hidden), self.vocab_size), dtype=torch.float32)
        self._project(hidden, out)
        if self.bias is not None:
            out += self.bias.float()
        return out

    def shaped(self, product: torch.Tensor) -> torch.Tensor:
        """Scaled and capped, in place."""
        if self.scale != 1.0:
            product *= self.scale
        if self.softcap is not None:
            product.div_(self.softcap).tanh_().mul_(self.softcap)
        return product

    def _project(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        if self.weight.dtype == torch.float32:
            torch.mm(hidden.float(), self.weight.t(), out=out)
        elif hidden.is_cuda:
            torch.mm(
                hidden.to(self.weight.dtype), self.weight.t(), out_dtype=torch.float32, out=out
            )
        else:
            wide = hidden.float()
            for at in range(0, self.vocab_size, WIDEN_ROWS):
                out[:, at : at + WIDEN_ROWS] = wide @ self.weight[at : at + WIDEN_ROWS].float().t()

    def backward(self, delta: torch.Tensor) -> torch.Tensor:
        """(n, V) gradient in h Wᵀ + b → (n, D) gradient in h."""
        if self.weight.dtype == torch.float32:
            return delta @ self.weight
        total = delta.new_zeros((len(delta), self.weight.shape[1]))
        for at in range(0, self.vocab_size, WIDEN_ROWS):
            total += delta[:, at : at + WIDEN_ROWS] @ self.weight[at : at + WIDEN_ROWS].float()
        return total


def head_of(model: PreTrainedModel) -> Head:
    """The head of a `transformers` causal language model, not proven yet. Raises `ModelError`."""
    module = model.get_output_embeddings()
    if module is None:
        raise ModelError(f"{type(model).__name__} has no output embeddings to read the head from")
    if hasattr(module, "modules_to_save"):  # PEFT trained a copy of the head
        module = module.modules_to_save[module.active_adapter]
    if hasattr(module, "base_layer"):  # PEFT put an adapter on the head
        module = copy.deepcopy(module)  # a tied head's weights are the input embeddings as well
        module.merge()
        module = module.base_layer
    config = model.config.get_text_config()
    return Head(
        _present(module, "weight"),
        None if getattr(module, "bias", None) is None else _present(module, "bias"),
        _scale(config),
        next((cap for name in CAPS if (cap := getattr(config, name, None))), None),
    )


def _present(module: torch.nn.Module, name: str) -> torch.Tensor:
    """A parameter of the head. Where `accelerate` offloads it, a copy on the device that it would
    be brought to each time: every chunk of positions needs it."""
    weight: torch.Tensor = getattr(module, name).detach()
    if weight.is_meta:
        hook: Any = module._hf_hook
        try:
            weight = hook.weights_map[name].to(hook.execution_device, weight.dtype)
        except KeyError as error:
            raise ModelError(
                "the head shares its weights with embeddings that --device-map offloads, and they "
                "cannot be found; keep the embeddings on a device"
            ) from error
    return weight


# Multiplied with by Cohere (`logit_scale`), Falcon-H1 and HyperCLOVA X (`logits_scaling`); Granite
# divides by the last.
SCALES = ("logit_scale", "lm_head_multiplier", "logits_scaling")
# Gemma and NanoChat, RecurrentGemma, xLSTM.
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
SHAPE_TOLERANCE = 1e-5  # of scale and cap in float32, relative to the logits' size


def fitted(head: Head, model: PreTrainedModel, raw: torch.Tensor, logits: torch.Tensor) -> Head:
    """The head with the scale and cap that turn the output module's `raw` into (…, V) logits.

    Tried, not guessed: some models multiply by what their config calls a scale, others divide by
    it, and a few do not read it. Where nothing fits, the head as it is.
    """
    config = model.config.get_text_config()
    named = [float(v) for name in SCALES if (v := getattr(config, name, None))]
    scales = dict.fromkeys([head.scale, *named, *(1 / v for v in named), 1.0])
    caps = [cap for name in CAPS if (cap := getattr(config, name, None))]
    tolerance = SHAPE_TOLERANCE * logits.abs().max().clamp(min=1.0)
    for scale, cap in product(scales, dict.fromkeys([head.softcap, *caps, None])):
        candidate = replace(head, scale=scale, softcap=cap)
        shaped = candidate.shaped(raw.float().clone())
        if shaped.shape == logits.shape and (shaped - logits).abs().max() <= tolerance:
            return candidate
    return head


def _scale(config: PreTrainedConfig) -> float:
    """What it most likely is; see `fitted`."""
    for name in SCALES:
        if (value := getattr(config, name, None)) is not None:
            return 1.0 / float(value) if name == "logits_scaling" else float(value)
    return 1.0
