"""The program, before it has a command."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

Function = Callable[..., None]

app = typer.Typer(
    name="eaft-probe",
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


class Command(TyperCommand):
    """Its help leaves out `--no-strict` and the like, whose column would cut the others' names."""

    def format_help(self, *arguments: Any) -> None:
        for parameter in self.params:
            parameter.secondary_opts = []
        super().format_help(*arguments)


def command(*examples: str, name: str | None = None) -> Callable[[Function], Function]:
    """A command of the program. Its help ends with the examples."""
    lines = ["Examples:", *(f"eaft-probe {example}" for example in examples)]
    return app.command(name, cls=Command, epilog="\n\n".join(lines))
