"""The program, before it has a command."""

from importlib.metadata import version
from typing import Annotated

import typer

app = typer.Typer(
    name="eaft-probe",
    help="See which tokens of a fine-tuning data set fight what the model already believes.",
    no_args_is_help=True,
    add_completion=False,
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
