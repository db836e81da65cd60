"""Settings from what a user wrote: arguments, or the YAML of `--config`."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml

from eaft_probe.errors import BadInput, one_line
from eaft_probe.settings.option import Settings, flag

Kind = TypeVar("Kind", bound=Settings)


def make_settings(kind: type[Kind], values: Mapping[str, object]) -> Kind:
    """`kind(**values)`, hyphens accepted. Raises `BadInput` for an unknown name or a wrong type."""
    spelled = {flag(f.name): f.name for f in fields(kind)}
    values = {spelled.get(flag(k), k.replace("-", "_")): v for k, v in values.items()}
    names = [*spelled.values()]
    for name in values:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BadInput(f"unknown setting {name!r}{hint}")
    made: Kind = typed(kind, None, values)
    return made


def typed(kind: Any, name: str | None, value: object) -> Any:
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

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("*aliases are not allowed; write each setting out")
        return super().compose_node(parent, index)


def read_config(path: str | Path) -> dict[str, object]:
    """The settings of a YAML file. Raises `BadInput`."""
    try:
        loaded = yaml.load(Path(path).read_text(encoding="utf-8"), _Plain)
    except Exception as error:  # `!!bool x` is a KeyError, deep nesting a RecursionError, …
        raise BadInput(f"cannot read --config {path}: {one_line(error)}") from error
    if not isinstance(loaded, dict):
        kind = type(loaded).__name__
        raise BadInput(f"--config {path} must hold a mapping of settings, found a {kind}")
    return {str(k).replace("-", "_"): v for k, v in loaded.items()}
