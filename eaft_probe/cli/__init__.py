"""The command line: parse, call one verb, print. No logic.

Verbs are imported when they run, so that `--help` answers at once.
"""

import sys
from contextlib import suppress
from typing import Any

import typer

from eaft_probe.cli import measure, read  # noqa: F401, which give the app its commands
from eaft_probe.cli.app import app
from eaft_probe.cli.printing import INTERRUPTED, StandardOutput
from eaft_probe.errors import LONGEST, BadInput, ProbeError, one_line

TABLE_LIBRARIES = ("duckdb", "_duckdb", "pyarrow")  # their errors mean parquet that is none


def main() -> None:
    """Runs the command line. The one place where errors become a line and an exit status."""
    sys.stdout = StandardOutput(sys.stdout)  # type: ignore[assignment]
    status = _run(sys.argv[1:])
    with suppress(typer.Exit):
        sys.stdout.flush()
    sys.exit(status)


def _require_once(arguments: list[str]) -> None:
    """Of `--objective sft --objective eaft` the parser would take the last without a word."""
    commands: Any = typer.main.get_command(app)
    command = commands.commands.get(arguments[0]) if arguments else None
    named = [a.split("=")[0].replace("_", "-") for a in arguments if a.startswith("--")]
    for option in command.params if command else ():
        single = option.param_type_name == "option" and not (option.multiple or option.is_flag)
        if single and sum(named.count(name) for name in option.opts) > 1:
            raise BadInput(f"{option.opts[0]} is given twice; it takes one value")


def _run(arguments: list[str]) -> int:
    try:
        _require_once(arguments)
        return int(app(arguments, standalone_mode=False) or 0)
    except ProbeError as error:
        return _complain(error, error.exit_status)
    except KeyboardInterrupt:
        return INTERRUPTED
    except MemoryError as error:
        return _complain(f"out of memory: {error}", ProbeError.exit_status)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryException":  # DuckDB's, which is no MemoryError
            return _complain(f"out of memory: {error}", ProbeError.exit_status)
        if type(error).__module__.split(".")[0] in TABLE_LIBRARIES:
            return _complain(f"a file of the scan is damaged: {error}", BadInput.exit_status)
        status = getattr(error, "exit_code", None)
        if status is None:
            raise
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        return _complain(message, int(status)) if message else int(status)


def _complain(error: object, status: int) -> int:
    """One line, however many processes of a launch have the same complaint."""
    from eaft_probe.verbs.said import first_to_say

    line = f"eaft-probe: {one_line(Exception(error), LONGEST)}"
    if first_to_say(line):
        print(line, file=sys.stderr)
    return status
