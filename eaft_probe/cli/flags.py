"""The flags of a command are the fields of its settings, and a few that several commands have."""

import inspect
import json
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from rich.markup import escape

from eaft_probe.errors import BadInput
from eaft_probe.settings import Settings, read_config, typed
from eaft_probe.settings.option import Panel, default_text, flag, panel


def with_default(text: str) -> str:
    """As typer shows a default, which brackets alone would make markup."""
    return escape(f" [default: {text}]") if text else ""


def output(*names: str, help: str, takes: str = "PATH", unset: str = "") -> Any:
    """An option of a command's own that says where the result goes, or how it is printed."""
    help += with_default(unset)
    return typer.Option(*names, help=help, metavar=takes, rich_help_panel=Panel.OUTPUT)


Given = dict[str, Any]  # the settings that the user gave, by name
Dir = Annotated[str, typer.Argument(metavar="DIR", help="a finished scan")]
Json = Annotated[bool, output("--json", help="print one JSON object", takes="")]
FailIf = Annotated[
    str | None,
    output(
        "--fail-if",
        help="exit with status 3 if this holds, e.g. 'conflict_share>0.03'",
        takes="'KEY>NUMBER'",
    ),
]
Data = Annotated[
    str | None,
    typer.Argument(
        metavar="DATA",
        help="file, folder, quoted glob, hub data set, or - for standard input"
        + with_default("the bundled demo data"),
    ),
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="YAML file with any of these options; the command line wins (--no-NAME turns a switch "
        "off)",
        metavar="PATH",
    ),
]
TAKES = {bool: "", int: "N", float: "X", list: "A,B,…", dict: "NAME=VALUE,…"}
AUTO = "auto|N"


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
            *(p.replace(kind=p.KEYWORD_ONLY) for p in arguments),
            _keyword("context", typer.Context, inspect.Parameter.empty),
            _keyword("config", Config),
            *(_option(kind, f, hints[f.name]) for f in fields(kind)),
        ]
        every.sort(key=_place)
        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in every}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _keyword(name: str, annotation: object, default: object = None) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _option(kind: type[Settings], setting: "Field[object]", hint: Any) -> inspect.Parameter:
    """None, or an empty list, stands for "not given", so that --config can set it."""
    text, takes = str(setting.metadata["help"]), _takes(hint)
    if get_origin(hint) in (dict, list):
        hint = list[str]
    elif takes == AUTO:
        hint = str
    spelled = [flag(setting.name)] if setting.name.endswith("_") else []
    shown = typer.Option(
        *spelled,
        help=text + with_default(default_text(setting)),
        metavar=takes,
        show_default=False,
        rich_help_panel=panel(kind, setting.name),
    )
    return _keyword(setting.name, Annotated[hint | None, shown])


def _takes(hint: Any) -> str:
    """What is written behind the flag."""
    parts = [a for a in get_args(hint) if a is not type(None)]
    if get_origin(hint) in (dict, list):
        return TAKES[get_origin(hint)]
    if get_origin(hint) is Literal:
        return "|".join(parts)
    if len(parts) > 1:
        return AUTO
    return _takes(parts[0]) if parts else TAKES.get(hint, "TEXT")


def _place(parameter: inspect.Parameter) -> int:
    """Of its panel; first what is in none: the arguments and --config."""
    described = getattr(parameter.annotation, "__metadata__", (None,))[0]
    shown_in = getattr(described, "rich_help_panel", None)
    return -1 if shown_in is None else list(Panel).index(shown_in)


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
    return (
        {k: _value(v) for k, v in pairs.items()}
        if name in ("template_arg", "engine_arg")
        else pairs
    )


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
