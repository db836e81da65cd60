"""Who runs the units of a scan: one entry of ENGINES each, loaded when it is used."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from eaft_probe.registry import Registry

if TYPE_CHECKING:
    from eaft_probe.engines.unit_queue import Job

ENGINES = Registry[Callable[["Job"], None]]("engine")


def _engine(name: str) -> None:
    """The function `run` of the module of that name."""
    ENGINES.add(name, lambda job: import_module(f"eaft_probe.engines.{name}").run(job))


_engine("local")
_engine("ray")
