"""Settings from what a user wrote: arguments, or the YAML of `--config`."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from eaft_probe.errors import BadInput, one_line
from eaft_probe.settings.option import flag


def make_settings(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """`kind(**values)`, hyphens accepted. Raises `BadInput` for an unknown name or a wrong type."""
    values = {k.replace("-", "_"): v for k, v in values.items()}
    known = [f.name for f in fields(kind)]
    for name in values:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BadInput(f"unknown setting {name!r}{hint}")
    return typed(kind, None, values)


def typed(kind: Any, name: str | None, value: Any) -> Any:
    """`value` as a `kind`: that of the setting `name`, or settings by their names. Raises
    `BadInput`."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        wrong = flag(name or str(first["loc"][0]))
        raise BadInput(f"{wrong}: {first['msg']}, found {first['input']!r}") from error


class _Plain(yaml.SafeLoader):
    """YAML without `*aliases`, of which thirty lines can stand for billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("a setting is written out; *aliases are not read")
        return super().compose_node(parent, index)


def read_config(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file. Raises `BadInput`."""
    try:
        loaded = yaml.load(Path(path).read_text(encoding="utf-8"), _Plain)
    except Exception as error:  # `!!bool x` is a KeyError, deep nesting a RecursionError, …
        raise BadInput(f"cannot read --config {path}: {one_line(error)}") from error
    if not isinstance(loaded, dict):
        raise BadInput(f"--config {path} should hold a mapping of settings")
    return {str(k).replace("-", "_"): v for k, v in loaded.items()}
