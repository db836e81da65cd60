"""The flags of a command are the fields of its settings, and a few that several commands have."""

import inspect
import json
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from eaft_probe.errors import BadInput
from eaft_probe.settings import read_config, typed

Dir = Annotated[str, typer.Argument(metavar="DIR", help="a finished scan")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
FailIf = Annotated[
    str | None,
    typer.Option("--fail-if", help="exit 3 where this holds, e.g. 'conflict_share>0.03'"),
]
Data = Annotated[str | None, typer.Argument(metavar="DATA", help="default: the bundled demo")]
Config = Annotated[str | None, typer.Option("--config", help="YAML file with any of the flags")]
ADDED = (
    inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
    inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config),
)


def flags(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command --config and one option for each field of `kind`.

    It receives the fields that the command line or the file gives as `given`; its own parameters
    may stand in the file, too. The command line wins.
    """
    hints = get_type_hints(kind)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "given"]

        def run(context: typer.Context, config: str | None, **values: Any) -> None:
            named = {p.name: values.pop(p.name) for p in own}
            given = {k: _parsed(hints[k], v, k) for k, v in values.items() if v not in (None, [])}
            settings = read_config(config) if config else {}
            for parameter in own:
                _configure(parameter, named, settings, context)
            command(**named, given=settings | given)

        options = [_option(f, hints[f.name]) for f in fields(kind)]
        every = [*own, *ADDED, *options]
        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in every}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _option(setting: "Field[Any]", hint: Any) -> inspect.Parameter:
    """None, or an empty list, stands for "not given", so that --config can say it."""
    shown = setting.default if setting.default is not MISSING else None
    text = str(setting.metadata["help"]) + (
        f" [default: {shown}]" if shown not in (None, False) else ""
    )
    origin = get_origin(hint)
    several, mixed = origin in (dict, list), origin is UnionType or origin is Union
    kind = (
        list[str]
        if several
        else (str if mixed and type(None) not in get_args(hint) else hint | None)
    )
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, typer.Option(help=text, show_default=False)],
    )


def _parsed(hint: Any, value: Any, name: str) -> Any:
    """Lists and mappings are written with commas, repeated, or both."""
    origin = get_origin(hint)
    if origin not in (dict, list):
        return value
    items = [item.strip() for text in value for item in text.split(",") if item.strip()]
    if origin is list:
        return items
    if not all(item.count("=") == 1 for item in items):
        raise BadInput(f"--{name} takes ours=theirs,…, found {','.join(items)}")
    pairs = dict(item.split("=") for item in items)
    return {k: _value(v) for k, v in pairs.items()} if name == "template_arg" else pairs


def _value(text: str) -> Any:
    """A number or a truth value as what it is, anything else as text."""
    try:
        read = json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)
    return read if isinstance(read, bool | int | float) else text


def _configure(
    parameter: inspect.Parameter,
    named: dict[str, Any],
    settings: dict[str, Any],
    context: typer.Context,
) -> None:
    """A command's own parameter as the config file has it, unless the command line gives it."""
    name = parameter.name.removeprefix("as_")  # `as_json` is --json
    if name not in settings:
        return
    value = typed(parameter.annotation, name, settings.pop(name))
    source = context.get_parameter_source(parameter.name)
    if source is None or source.name != "COMMANDLINE":
        named[parameter.name] = value
