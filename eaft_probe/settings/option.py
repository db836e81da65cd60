"""One setting: its default, its help text and its bounds, and how its flag is spelled and shown."""

import inspect
import operator
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar

from eaft_probe.errors import BadInput

BOUNDS = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


class Panel(StrEnum):
    """The parts of a command's help, in their order there."""

    DATA = "Data"
    TEMPLATE = "Chat template"
    TRAINED = "Trained tokens"
    MODEL = "Model"
    SAMPLING = "Sampling"
    OBJECTIVE = "Objective"
    OPTIMIZER = "Optimizer"
    LORA = "LoRA"
    MEASURED = "Log and measurements"
    RULE = "Conflict rule"
    FIGURE = "Figure"
    COMPARISON = "Comparison"
    OUTPUT = "Output"
    MACHINES = "Speed and machines"
    ESTIMATE = "Estimate"


def option(help: str, default: object = None, *, unset: str = "", **bounds: float) -> Any:
    """A field of `Settings`, of any type as what `dataclasses.field` gives; a number has BOUNDS.

    `unset`: the default in words, where its value does not say it.
    """
    metadata = {"help": help, "unset": unset, "bounds": bounds}
    if isinstance(default, dict | list):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """How a setting is spelled; one named like a word of Python has an underscore behind it."""
    return "--" + name.rstrip("_").replace("_", "-")


def default_text(setting: "Field[Any]") -> str:
    """The default as a person writes it; nothing where there is none.

    >>> default_text(option("rate", 1e-5)), default_text(option("length", unset="the context"))
    ('1e-5', 'the context')
    """
    default = setting.default
    if setting.metadata["unset"] or default in (None, MISSING) or default is False:
        return str(setting.metadata["unset"])
    return f"{default:g}".replace("e-0", "e-") if isinstance(default, float) else str(default)


def _default(setting: "Field[Any]") -> Any:
    factory = setting.default_factory
    return setting.default if factory is MISSING else factory()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all settings have in common: each number lies within the bounds of its field."""

    PANEL: ClassVar[Panel]  # of the settings that a class defines; by default Panel.OUTPUT

    def changed(self, *names: str) -> list[str]:
        """The flags of those settings that do not have their default."""
        own = (f for f in fields(self) if f.name in names)
        return [flag(f.name) for f in own if getattr(self, f.name) != _default(f)]

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, bounds = getattr(self, setting.name), setting.metadata["bounds"]
            number = isinstance(value, int | float)
            if number and not all(BOUNDS[name](value, limit) for name, limit in bounds.items()):
                limits = (f"{name.replace('_', ' ')} {limit:,}" for name, limit in bounds.items())
                raise BadInput(
                    f"{flag(setting.name)} must be {' and '.join(limits)}, found {value}"
                )


def panel(kind: type[Settings], name: str) -> Panel:
    """Where the help shows a setting: with the others of the class that defines it first."""
    owner = next(c for c in reversed(kind.__mro__) if name in inspect.get_annotations(c))
    shown: Panel = vars(owner).get("PANEL", Panel.OUTPUT)
    return shown
