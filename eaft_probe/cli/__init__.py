"""The command line: parse, call one verb, print. No logic.

Verbs are imported when they run, so that `--help` answers at once.
"""

import codecs
import io
import locale
import os
import sys
from contextlib import suppress
from typing import Any

import typer

from eaft_probe.cli import model_commands, scan_commands  # noqa: F401, the app's commands
from eaft_probe.cli.app import app
from eaft_probe.cli.printing import INTERRUPTED, StandardOutput
from eaft_probe.errors import LONGEST, BadInput, ProbeError, one_line, out_of_memory
from eaft_probe.storage.atomic import require_utf8

TABLE_LIBRARIES = ("duckdb", "_duckdb", "pyarrow")  # their errors mean parquet that is none


def main() -> None:
    """Runs the command line. The one place where errors become a line and an exit status."""
    _speak_utf8()
    out = None if sys.stdout is None else StandardOutput(sys.stdout)  # it may be closed
    sys.stdout = out  # type: ignore[assignment]
    sys.exit(_run(sys.argv[1:]))


def _speak_utf8() -> None:
    """Every file here is UTF-8, and so are the names in them: in another locale Python starts over
    in its UTF-8 mode, for libraries and worker processes too."""
    if os.name == "posix" and codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # half of a character is printed, too


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
        for argument in arguments:
            require_utf8(argument)
        _require_once(arguments)
        status = int(app(arguments, standalone_mode=False) or 0)
        with suppress(typer.Exit):  # whoever read it has left
            if sys.stdout is not None:  # closed by who started this
                sys.stdout.flush()  # a full disk shows here
        return status
    except ProbeError as error:
        return _complain(error, error.exit_status)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # tokenizers' panics are no `Exception`
        return _give_up(error)


def _give_up(error: BaseException) -> int:
    """An error that nothing expected, as one line; EAFT_PROBE_TRACEBACK=1 shows where it rose."""
    if isinstance(error, OSError):
        _print_no_more()  # else what is still to be written fails once more at exit
    if out_of_memory(error):
        return _complain(f"out of memory: {one_line(error)}", ProbeError.exit_status)
    if type(error).__module__.split(".")[0] in TABLE_LIBRARIES:
        return _complain(f"a file of the scan is damaged: {error}", BadInput.exit_status)
    status = getattr(error, "exit_code", None)
    if status is not None:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        return _complain(message, int(status)) if message else int(status)
    if os.environ.get("EAFT_PROBE_TRACEBACK"):
        raise error
    kind = "" if isinstance(error, OSError) else f"unexpected {type(error).__name__}: "
    return _complain(f"{kind}{one_line(error)}", ProbeError.exit_status)


def _print_no_more() -> None:
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(error: object, status: int) -> int:
    """One line, however many processes of a launch have the same complaint."""
    from eaft_probe.launcher import first_to_say

    line = f"eaft-probe: {one_line(Exception(error), LONGEST)}"
    if first_to_say(line) and sys.stderr is not None:
        print(line, file=sys.stderr)
    return status
