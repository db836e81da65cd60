"""Loaders of models: whatever they raise becomes a message that names the model."""

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from transformers.utils import logging as transformers_logging

from eaft_probe.errors import as_model_error

P = ParamSpec("P")
Loaded = TypeVar("Loaded")


def loads(load: Callable[Concatenate[str, P], Loaded]) -> Callable[Concatenate[str, P], Loaded]:
    """`load(name, …)` that raises `ModelError` for whatever a model's folder makes it raise."""

    @wraps(load)
    def run(name: str, /, *args: P.args, **named: P.kwargs) -> Loaded:
        with as_model_error(f"cannot load model {name}"):
            return load(name, *args, **named)

    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the loader's bars and advice; our own messages say what matters."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
