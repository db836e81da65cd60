"""One setting: its default and its help text, and how its flag is spelled."""

from dataclasses import field
from typing import Any


def option(help: str, default: Any = None) -> Any:
    if isinstance(default, dict | list):
        return field(default_factory=type(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")
