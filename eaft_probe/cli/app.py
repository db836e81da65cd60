"""The program, before it has a command."""

from collections.abc import Callable
from copy import copy
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

Function = Callable[..., None]


def _shortened(command: Any, context: Any) -> Any:
    """A copy for a help without `--no-strict` and the like, whose column would cut the others'
    names, and without `<bool>` and `<str>`, which say nothing."""
    shorter = copy(command)
    shorter.params = [copy(parameter) for parameter in command.params]
    for parameter in shorter.get_params(context):
        parameter.secondary_opts = []
        if isinstance(parameter, TyperArgument) or parameter.is_flag:
            parameter.display_type_rich = lambda ctx: ""
    return shorter


class Group(TyperGroup):
    """The program, with a shorter help."""

    def format_help(self, context: Any, formatter: Any) -> None:
        super(Group, _shortened(self, context)).format_help(context, formatter)


class Command(TyperCommand):
    """One of its commands, with a shorter help."""

    def format_help(self, context: Any, formatter: Any) -> None:
        super(Command, _shortened(self, context)).format_help(context, formatter)


app = typer.Typer(
    name="eaft-probe",
    cls=Group,
    help="See which tokens of a fine-tuning data set fight what the model already believes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)


@app.callback(invoke_without_command=True)
def _root(
    show: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    if show:
        print(version("eaft-probe"))
        raise typer.Exit


def command(*examples: str, name: str | None = None) -> Callable[[Function], Function]:
    """A command of the program. Its help ends with the examples."""
    lines = ["Examples:", *(f"eaft-probe {example}" for example in examples)]
    return app.command(name, cls=Command, epilog="\n\n".join(lines))
