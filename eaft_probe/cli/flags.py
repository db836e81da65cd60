"""The flags of a command are the fields of its settings, and a few that several commands have."""

import inspect
import json
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from eaft_probe.errors import BadInput
from eaft_probe.settings import Settings, read_config, typed

Given = dict[str, object]  # the settings that the user gave, by name
Dir = Annotated[str, typer.Argument(metavar="DIR", help="a finished scan")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
FailIf = Annotated[
    str | None,
    typer.Option("--fail-if", help="exit with status 3 if this holds: 'conflict_share>0.03'"),
]
Data = Annotated[str | None, typer.Argument(metavar="DATA", help="default: the bundled demo data")]
Config = Annotated[str | None, typer.Option("--config", help="YAML file with any of the flags")]


def flags(kind: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command --config and one option for each field of `kind`.

    It receives the fields that the command line or the file gives as `given`; the file may also
    have its own parameters. The command line wins.
    """
    hints = get_type_hints(kind)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(command).parameters.values()
        arguments = [p for p in parameters if p.name != "given"]

        def run(context: typer.Context, config: str | None, **values: Any) -> None:
            settings = read_config(config) if config else {}
            own = {p.name: _argument(p, values.pop(p.name), settings, context) for p in arguments}
            given = {k: _parsed(hints[k], v, k) for k, v in values.items() if v not in (None, [])}
            command(**own, given=settings | given)

        every = [
            *arguments,
            _keyword("context", typer.Context, inspect.Parameter.empty),
            _keyword("config", Config),
            *(_option(f, hints[f.name]) for f in fields(kind)),
        ]
        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in every}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _keyword(name: str, annotation: object, default: object = None) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _option(setting: "Field[object]", hint: Any) -> inspect.Parameter:
    """None, or an empty list, stands for "not given", so that --config can set it."""
    text = str(setting.metadata["help"])
    default = setting.default
    if default not in (None, MISSING) and default is not False:
        # no brackets, which would be markup
        text += (
            f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"
        )
    if get_origin(hint) in (dict, list):
        hint = list[str]
    elif int in get_args(hint) and type(None) not in get_args(hint):  # auto or a number
        hint = str
    return _keyword(
        setting.name, Annotated[hint | None, typer.Option(help=text, show_default=False)]
    )


def _parsed(hint: object, value: Any, name: str) -> object:
    """Lists and mappings are written with commas, repeated, or both."""
    if get_origin(hint) not in (dict, list):
        return value
    items = [item.strip() for text in value for item in text.split(",") if item.strip()]
    if get_origin(hint) is list:
        return items
    if not all(item.count("=") == 1 for item in items):
        raise BadInput(f"--{name} takes name=value,…, found {','.join(items)!r}")
    pairs = dict(item.split("=") for item in items)
    return {k: _value(v) for k, v in pairs.items()} if name == "template_arg" else pairs


def _value(text: str) -> object:
    """A number or a truth value as what it is, anything else as text."""
    try:
        value = json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)
    return value if isinstance(value, bool | int | float) else text


def _argument(
    parameter: inspect.Parameter, value: object, settings: Given, context: typer.Context
) -> object:
    """A command's own argument; from the config file's `settings`, if only that gives it."""
    name = parameter.name.removeprefix("as_")  # `as_json` is --json
    if name not in settings:
        return value
    configured: object = typed(parameter.annotation, name, settings.pop(name))
    source = context.get_parameter_source(parameter.name)
    return value if source is not None and source.name == "COMMANDLINE" else configured
