"""The command line: parse, call one verb, print. No logic.

Verbs are imported when they run, so that `--help` answers at once.
"""

import codecs
import io
import locale
import os
import sys
from contextlib import suppress
from functools import cache
from typing import Any

import typer

from eaft_probe.cli import model_commands, scan_commands  # noqa: F401, the app's commands
from eaft_probe.cli.app import app
from eaft_probe.cli.printing import INTERRUPTED, StandardOutput
from eaft_probe.errors import LONGEST, BadInput, ProbeError, one_line, out_of_memory
from eaft_probe.launcher import first_to_say
from eaft_probe.storage.atomic import require_utf8

TABLE_LIBRARIES = ("duckdb", "_duckdb", "pyarrow")  # their errors mean an invalid parquet file


def main() -> None:
    """Runs the command line. The one place where errors become a line and an exit status."""
    _speak_utf8()
    if sys.stdout is not None:  # closed by whoever started this
        sys.stdout = StandardOutput(sys.stdout)  # type: ignore[assignment]
    sys.exit(_run(sys.argv[1:]))


def _speak_utf8() -> None:
    """All files here and the names in them are UTF-8: in another locale, Python starts again in
    its UTF-8 mode, which libraries and worker processes inherit."""
    if os.name == "posix" and codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # half of a character is printed, too


@cache
def _program() -> Any:
    """Its commands with their options, of which there are hundreds: 0.1 s."""
    return typer.main.get_command(app)


def _require_once(arguments: list[str]) -> None:
    """Of `--objective sft --objective eaft` the parser would silently take the last."""
    command = _program().commands.get(arguments[0]) if arguments else None
    names = [a.split("=")[0].replace("_", "-") for a in arguments if a.startswith("--")]
    for option in command.params if command else ():
        single = option.param_type_name == "option" and not (option.multiple or option.is_flag)
        if single and sum(names.count(name) for name in option.opts) > 1:
            raise BadInput(f"{option.opts[0]} is given more than once, but takes one value")


def _run(arguments: list[str]) -> int:
    try:
        for argument in arguments:
            require_utf8(argument)
        _require_once(arguments)
        status = int(_program()(arguments, prog_name="eaft-probe", standalone_mode=False) or 0)
        if sys.stdout is not None:  # closed by whoever started this
            with suppress(typer.Exit):  # the reader has left
                sys.stdout.flush()  # a full disk shows here
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # tokenizers' panics are no `Exception`
        message, status = _explained(error)
        _print_error(message)
        return status


def _explained(error: BaseException) -> tuple[str, int]:
    """What to print and the exit status; EAFT_PROBE_TRACEBACK=1 raises an unexpected error."""
    if isinstance(error, ProbeError):
        return str(error), error.exit_status
    if isinstance(error, OSError) and sys.stdout is not None:
        # Or what is still to be written fails once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if out_of_memory(error):
        return f"out of memory: {one_line(error)}", ProbeError.exit_status
    if type(error).__module__.split(".")[0] in TABLE_LIBRARIES:
        return f"a file of the scan is damaged: {error}", BadInput.exit_status
    if hasattr(error, "exit_code"):  # the parser's
        message = error.format_message() if hasattr(error, "format_message") else error
        return str(message), int(error.exit_code)
    if os.environ.get("EAFT_PROBE_TRACEBACK"):
        raise error
    kind = "" if isinstance(error, OSError) else f"unexpected {type(error).__name__}: "
    return f"{kind}{one_line(error)}", ProbeError.exit_status


def _print_error(message: str) -> None:
    """One line, once for all processes of a launch that have the same message."""
    line = f"eaft-probe: {one_line(Exception(message), LONGEST)}"
    if message and first_to_say(line) and sys.stderr is not None:
        print(line, file=sys.stderr)
