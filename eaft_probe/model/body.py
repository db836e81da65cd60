"""What a model computes before its output module: found by what that module is given."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from eaft_probe.errors import ModelError
from eaft_probe.model.head import Head, fitted, head_of


def watched(
    model: PreTrainedModel, **inputs: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
    """Runs the model and watches its output module: its (B, T, V) logits, and the (B, T, D) states
    that the module was given with the (B, T, V) that it made of them; None where it was not called.

    The module's output is handed on in float32, so that the model's own scale and cap are computed
    as exactly as ours, whatever its dtype.
    """
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def hook(_: torch.nn.Module, args: tuple[torch.Tensor], raw: torch.Tensor) -> torch.Tensor:
        calls.append((args[0], raw))
        return raw.float()

    with model.get_output_embeddings().register_forward_hook(hook):
        logits = model(use_cache=False, **inputs).logits
    return logits, calls[-1] if calls else None


def named_body(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a model that is called its body. Raises `ModelError` where nothing is."""
    for body in _candidates(model):
        return body
    raise ModelError(
        f"{type(model).__name__} has no part that gives its hidden states; it is not supported"
    )


def _candidates(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    for body in (model.base_model, model.get_decoder(), *model.children()):
        if body is not model and isinstance(body, PreTrainedModel):
            yield body


def taken_apart(
    model: PreTrainedModel, input_ids: torch.Tensor
) -> tuple["PreTrainedModel | UpToHead", Head]:
    """The part whose first output is what the output module reads, tried on (1, T) ids, and the
    head; where there is no such part, as where a transform stands between the two, the model up to
    that module."""
    head = head_of(model)
    logits, output = watched(model, input_ids=input_ids)
    if output is None:
        return named_body(model), head
    expected, raw = output
    head = fitted(head, model, raw, logits)
    for body in _candidates(model):
        states = body(input_ids=input_ids, use_cache=False)[0]
        if states.shape == expected.shape and torch.allclose(
            states.float(), expected.float(), rtol=1e-2, atol=1e-2
        ):
            return body, head
    return UpToHead(model), head


class _Reached(BaseException):
    """Ends a forward pass at the output module, with the states that are given to it. No
    `Exception`, which a model might catch."""


def _end(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    raise _Reached(args[0])


class UpToHead:
    """A model's forward pass up to its output module, in place of a body."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @property
    def forward(self) -> Any:
        """For its signature. Of the class: a gated model has another forward pass of its own."""
        return type(self.model).forward

    def __call__(self, **inputs: object) -> tuple[torch.Tensor]:
        """The states that the output module is given, alone."""
        with self.model.get_output_embeddings().register_forward_pre_hook(_end):
            try:
                self.forward(self.model, **inputs)
            except _Reached as reached:
                return (reached.args[0],)
        raise RuntimeError(f"{type(self.model).__name__} does not call its output module")
