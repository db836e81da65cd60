"""The parameters that training would move, and a model that has moved a little."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from eaft_probe.errors import BadInput
from eaft_probe.model.foreign import quiet
from eaft_probe.model.loading import CausalLM


@dataclass(frozen=True)
class Lora:
    """A new adapter. Its B is 0 at the start, so that the model computes what it did before."""

    r: int
    alpha: int = 16
    target: Sequence[str] = ()  # all linear modules except the head
    seed: int = 0

    def on(self, model: PreTrainedModel) -> PreTrainedModel:
        """The PEFT model; the adapter's layers stand inside `model` itself, too."""
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(self.seed)  # of the adapter's first weights
        target = list(self.target) or "all-linear"
        config = LoraConfig(
            r=self.r, lora_alpha=self.alpha, task_type="CAUSAL_LM", target_modules=target
        )
        with quiet():
            return get_peft_model(model, config)


def movable(model: PreTrainedModel, lora: Lora | None) -> dict[str, torch.nn.Parameter]:
    """The parameters that training moves, tied ones once: all, or those of a new adapter alone.

    Raises `BadInput` for weights in half precision, which a small step would not change.
    """
    if lora is not None:
        lora.on(model)
        model.eval()
    else:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    moved = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if any(p.dtype != torch.float32 for p in model.parameters()):
        raise BadInput(
            "the model is not in float32, where differences of two passes would be noise; give "
            "--dtype float32"
        )
    return moved


@dataclass(frozen=True)
class Perturbation:
    """A step of some length along the unit direction that a file holds. It travels to workers."""

    file: str
    sha256: str
    step: float
    lora: Lora | None = None

    def plan(self) -> dict[str, Any]:
        """What a rerun must repeat."""
        lora = self.lora and {"r": self.lora.r, "alpha": self.lora.alpha, "seed": self.lora.seed}
        return {"direction": self.sha256, "step": self.step, "lora": lora}

    def apply(self, model: CausalLM) -> None:
        """Moves the model's parameters. Raises `BadInput` where the file has changed."""
        with Path(self.file).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
                raise BadInput(f"{self.file} has changed since the forecast began; remove it")
        move(movable(model.whole, self.lora), load_file(self.file), self.step)


@torch.no_grad()
def move(
    parameters: Mapping[str, torch.nn.Parameter],
    direction: Mapping[str, torch.Tensor],
    step: float,
) -> None:
    """Adds `step` times the direction."""
    for name, parameter in parameters.items():
        parameter.add_(direction[name].to(parameter), alpha=step)
