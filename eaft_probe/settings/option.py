"""One setting: its default, its help text and its bounds, and how its flag is spelled."""

import operator
from dataclasses import dataclass, field, fields
from typing import Any

from eaft_probe.errors import BadInput

BOUNDS = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


def option(help: str, default: object = None, **bounds: float) -> Any:
    """A field of `Settings`, of any type as what `dataclasses.field` gives; a number has BOUNDS."""
    metadata = {"help": help, "bounds": bounds}
    if isinstance(default, dict | list):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all settings have in common: each number lies within the bounds of its field."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, bounds = getattr(self, setting.name), setting.metadata["bounds"]
            number = isinstance(value, int | float)
            if number and not all(BOUNDS[name](value, limit) for name, limit in bounds.items()):
                limits = (f"{name.replace('_', ' ')} {limit:,}" for name, limit in bounds.items())
                raise BadInput(
                    f"{flag(setting.name)} must be {' and '.join(limits)}, found {value}"
                )
