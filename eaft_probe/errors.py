"""The error tree. A message says what was seen, what was expected and which flag helps.

`ProbeError` and its children are for users: the command line prints their message as one line
and exits with `exit_status`. `RowError` never leaves the data room: it rejects one row.
A message often quotes somebody else's file, so each of them is one printable line by itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from eaft_probe.text import printable

LONGEST = 1000  # characters of a message


class _OneLine(Exception):
    """Its message is one printable line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(_line(str(message), LONGEST))


class ProbeError(_OneLine):
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


class TooLittleMemory(ModelError):
    """A model that does not fit the memory that is free. Exit status 1."""

    exit_status = 1


class ScanError(BadInput):
    """A scan folder that is missing, incomplete or made with other settings."""


class MissingColumn(ScanError):
    """A scan without a column that was asked for."""


class NonFinite(ProbeError):
    """The model produced NaN, or gives a label no probability at all."""


class RowError(_OneLine):
    """One row that cannot be scored; its message is the reason in `rejected.jsonl`."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of any exception as one printable line of at most `limit` characters.

    >>> one_line(ValueError("first\\n  second\\x1b[2J"))
    'first second\\\\x1b[2J'
    """
    return _line(str(error), limit) or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that there was too little memory, in the words of Python, torch,
    DuckDB or the operating system."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryException"
        or (
            isinstance(error, RuntimeError | OSError)
            and any(words in str(error) for words in ("allocate memory", "out of memory"))
        )
    )


@contextmanager
def as_model_error(what: str) -> Iterator[None]:
    """Runs somebody else's code on somebody else's files: all that it raises is a `ModelError`.

    No list of exceptions: a cut file is a `struct.error`, a model without heads a
    `ZeroDivisionError`, and a panic of tokenizers is not even an `Exception`.
    """
    try:
        yield
    except BaseException as error:
        kind = type(error)
        panic = kind.__name__ == "PanicException"  # libraries in Rust do not export the class
        if isinstance(error, _OneLine) or not (isinstance(error, Exception) or panic):
            raise
        if out_of_memory(error):
            raise TooLittleMemory(f"{what}: out of memory: {one_line(error)}") from error
        # The name by which people look it up, where the message alone would not do.
        name = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        plain = isinstance(error, OSError | ValueError | RuntimeError | ImportError)
        named = "" if plain else f"{name}{kind.__name__}: "
        hint = "; pickled weights need --allow-pickle" if "safetensors" in str(error) else ""
        raise ModelError(f"{what}: {named}{one_line(error)}{hint}") from error


def _line(text: str, limit: int) -> str:
    line = printable(" ".join(text[: 10 * limit].split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"
