"""Who runs the units of a scan: each file here with a function `run` is an engine."""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from eaft_probe.registry import Registry

if TYPE_CHECKING:
    from eaft_probe.engines.unit_queue import Job

Engine = Callable[["Job"], None]


class Engines(Registry[Engine]):
    """Read when one is asked for: a worker, which is a file here too, needs none of them."""

    def __getitem__(self, name: str) -> Engine:
        for file in iter_modules(__path__):
            module = import_module(f"{__name__}.{file.name}")
            if file.name not in self and hasattr(module, "run"):
                self.add(file.name, module.run)
        return super().__getitem__(name)


ENGINES = Engines("engine")
