"""The error tree. A message says what was seen, what was expected and which flag helps.

`ProbeError` and its children are for users: the command line prints their message as one line
and exits with `exit_status`. `RowError` never leaves the data room: it rejects one row.
A message often quotes somebody else's file, so each of them is one printable line by itself.
"""

from eaft_probe.printable import printable

LONGEST = 1000  # characters of a message


class _Said(Exception):
    """Its message is one printable line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(_line(str(message), LONGEST))


class ProbeError(_Said):
    """Something failed while working. Exit status 1."""

    exit_status = 1


class BadInput(ProbeError):
    """The user gave something that cannot be used: data, a flag, a folder. Exit status 2."""

    exit_status = 2


class UnknownName(BadInput):
    """A name that no registry entry has."""


class DataError(BadInput):
    """A data source that is missing, empty or unreadable."""


class NothingScored(DataError):
    """Data of which every row was rejected."""


class FormatError(BadInput):
    """Columns that no known format, or more than one, explains."""


class ModelError(BadInput):
    """A model or tokenizer that does not exist, does not load or does not fit its head proof."""


class ScanError(BadInput):
    """A scan folder that is missing, incomplete or made with other settings."""


class MissingColumn(ScanError):
    """A scan without a column that was asked for."""


class NonFinite(ProbeError):
    """The model produced NaN, or gives a label no probability at all."""


class RowError(_Said):
    """One row that cannot be scored; its message is the reason in `rejected.jsonl`."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of any exception as one printable line of at most `limit` characters.

    >>> one_line(ValueError("first\\n  second\\x1b[2J"))
    'first second\\\\x1b[2J'
    """
    return _line(str(error), limit) or type(error).__name__


def _line(text: str, limit: int) -> str:
    said = printable(" ".join(text[: 10 * limit].split()))
    return said if len(said) <= limit else said[: limit - 1] + "…"
