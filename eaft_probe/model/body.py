"""What a model computes before its output module: found by what that module is given."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from eaft_probe.model.head import Head, fitted, head_of


@dataclass
class Seen:
    """What passes through a model's output module in one forward pass."""

    states: torch.Tensor | None = None  # (B, T, D) given to it
    raw: torch.Tensor | None = None  # (B, T, V) its own output
    logits: torch.Tensor | None = None  # (B, T, V) what the model makes of it


def seen(module: Any, run: Callable[[], torch.Tensor]) -> Seen:
    """Watches the output module while `run` gives the model's logits.

    What it gives is handed on in float32, so that the model's own scale and cap are computed as
    exactly as ours, whatever its dtype.
    """
    found = Seen()

    def hook(_: Any, given: tuple[Any, ...], raw: torch.Tensor) -> torch.Tensor:
        found.states, found.raw = given[0], raw
        return raw.float()

    handle = module.register_forward_hook(hook)
    try:
        found.logits = run()
    finally:
        handle.remove()
    return found


def named_body(model: Any) -> Any:
    """The part of a model that is called its body; None where nothing is."""
    return next(_named(model), None)


def _named(model: Any) -> Iterator[Any]:
    for body in (model.base_model, model.get_decoder(), *model.children()):
        if body is not model and isinstance(body, PreTrainedModel):
            yield body


def taken_apart(model: Any, input_ids: torch.Tensor) -> tuple[Any, Head]:
    """The part whose first output is what the output module reads, tried on (1, T) ids, and the
    head; where there is no such part, as where a transform stands between the two, the model up to
    that module."""
    head, module = head_of(model), model.get_output_embeddings()
    found = seen(module, lambda: model(input_ids=input_ids, use_cache=False).logits)
    if found.states is None or found.raw is None or found.logits is None:
        return named_body(model), head
    head = fitted(head, model, found.raw, found.logits)
    for body in _named(model):
        if _gives(body, input_ids, found.states):
            return body, head
    return UpToHead(model), head


def _gives(body: Any, input_ids: torch.Tensor, wanted: torch.Tensor) -> bool:
    states = body(input_ids=input_ids, use_cache=False)[0]
    return states.shape == wanted.shape and torch.allclose(
        states.float(), wanted.float(), rtol=1e-2, atol=1e-2
    )


class _Reached(BaseException):
    """Ends a forward pass at the output module. No `Exception`, which a model might catch."""

    def __init__(self, states: torch.Tensor) -> None:
        self.states = states


class UpToHead:
    """A model's forward pass up to its output module, in place of a body."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @property
    def forward(self) -> Any:
        """For its signature. Of the class: a gated model has another forward pass of its own."""
        return type(self.model).forward

    def __call__(self, **inputs: Any) -> tuple[torch.Tensor]:
        """The states that the output module is given, alone."""
        with _ended_at(self.model.get_output_embeddings()):
            try:
                self.forward(self.model, **inputs)
            except _Reached as reached:
                return (reached.states,)
        raise RuntimeError(f"{type(self.model).__name__} does not call its output module")


@contextmanager
def _ended_at(module: Any) -> Iterator[None]:
    def hook(_: Any, given: tuple[Any, ...]) -> None:
        raise _Reached(given[0])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
