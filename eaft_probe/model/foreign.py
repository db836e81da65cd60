"""Loaders of models, whatever comes out of which is said of the model by its name."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from eaft_probe.errors import foreign

P = ParamSpec("P")
Loaded = TypeVar("Loaded")


def loads(load: Callable[Concatenate[str, P], Loaded]) -> Callable[Concatenate[str, P], Loaded]:
    """`load(name, …)` that raises `ModelError` for whatever a model's folder makes it raise."""

    @wraps(load)
    def run(name: str, /, *args: P.args, **named: P.kwargs) -> Loaded:
        with foreign(f"cannot load model {name}"):
            return load(name, *args, **named)

    return run
