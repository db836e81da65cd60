"""The exact gradient of one token's nll in all of a model's parameters."""

import inspect
import math
from collections.abc import Sequence

import torch

from eaft_probe.errors import ProbeError
from eaft_probe.model.lengths import regimes
from eaft_probe.model.loading import CausalLM


class WholeModel:
    """Exact gradient norms of single tokens in all of a model's parameters, tied ones once.

    Each parameter's gradient is dropped once its norm is taken: besides the weights and the
    token's own activations, memory holds one of them at a time.
    """

    def __init__(self, model: CausalLM) -> None:
        self.model, self.device = model.whole.eval(), model.device
        self.regime = regimes(model.borders)
        self.squares: list[torch.Tensor] = []
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._take)
        # Whether the model can be asked for the last logits alone.
        self.keeps_some = "logits_to_keep" in inspect.signature(self.model.forward).parameters

    def __call__(self, ids: Sequence[int], label: int) -> tuple[float, float]:
        """(norm, nll in nats) of `ids[label]` after the ids before it. Those after it are read
        only where the model's numbers depend on how long its input is. Raises `ProbeError` where
        the memory does not suffice."""
        self.squares.clear()
        length = label if self.regime(label) == self.regime(len(ids)) else len(ids)
        from_end = length - label + 1
        keep = {"logits_to_keep": from_end} if self.keeps_some else {}
        try:
            input_ids = torch.tensor([ids[:length]], device=self.device)
            output = self.model(input_ids=input_ids, use_cache=False, **keep)
            # In float64: of a sure token's P − onehot float32 would leave no digit.
            nll = -output.logits[0, -from_end].double().log_softmax(-1)[ids[label]]
            nll.backward()
        except torch.OutOfMemoryError as error:
            raise ProbeError(
                f"out of memory on a context of {length:,} tokens; give --device cpu or "
                f"--device-map auto"
            ) from error
        return math.sqrt(math.fsum(map(float, self.squares))), float(nll.detach())

    def _take(self, parameter: torch.Tensor) -> None:
        """Norms of rows in float32, their sum in float64: one norm of 28 million float32 numbers
        was 0.2 % off, and 30 times as slow in float64."""
        assert parameter.grad is not None
        rows = parameter.grad.float().reshape(-1, parameter.shape[-1] if parameter.dim() else 1)
        self.squares.append(torch.linalg.vector_norm(rows, dim=-1).double().square().sum())
        parameter.grad = None
