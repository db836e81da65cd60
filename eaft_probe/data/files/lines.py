"""Lines and paragraphs of a text file, none of them longer than a row may be."""

import json
import re
from collections.abc import Iterator
from functools import partial
from itertools import accumulate, chain
from typing import IO, Any

from eaft_probe.errors import RowError, one_line

Value = Any  # of a row: bytes of JSON, a parsed row, or the `RowError` that it gave
Read = Iterator[tuple[int | None, Value]]  # with the line where it begins

LONGEST_ROW = 10_000_000  # bytes of a line, paragraph or field; tokens take 100 times that
FIRST_LINES = 99  # that tell whether a .json holds JSON lines
DEEPEST = 100  # levels of nesting in a row; what walks it calls itself for each of them
ENCODING_HINT = "if it is an older Windows file, try --encoding cp1252"
_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[][{}]', re.DOTALL)


def parse_json(text: bytes) -> object:
    """The value that JSON text stands for. Raises `RowError`."""
    if _too_deep(text):
        raise RowError(f"malformed JSON: more than {DEEPEST} levels deep")
    try:
        return json.loads(text.decode().removeprefix("\ufeff").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise not_utf8(error) from error
    except json.JSONDecodeError as error:
        raise RowError(f"malformed JSON: {error.msg} at column {error.colno}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of 5000 digits
        raise RowError(f"malformed JSON: {one_line(error)}") from error


def not_utf8(error: UnicodeDecodeError) -> RowError:
    """Why a row that is not in the encoding of the file is rejected."""
    return RowError(f"invalid UTF-8 at byte {error.start}; {ENCODING_HINT}")


def _too_deep(text: bytes) -> bool:
    """Whether it is nested more than DEEPEST levels deep; few rows have that many brackets."""
    if text.count(b"[") + text.count(b"{") <= DEEPEST:
        return False
    steps = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
    depths = accumulate(steps.get(m[0], 0) for m in _BRACKETS.finditer(text))
    return any(depth > DEEPEST for depth in depths)


def numbered(file: IO[bytes]) -> Iterator[tuple[int, bytes | RowError]]:
    """Lines from 1; one that is too long is an error of its own: a few bytes of an archive may
    unpack to a line larger than any memory."""
    lines = iter(partial(file.readline, LONGEST_ROW + 1), b"")
    for number, line in enumerate(lines, 1):
        if len(line) <= LONGEST_ROW:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_ROW)
        yield number, RowError(f"a line of more than {LONGEST_ROW:,} bytes")


def read_lines(file: IO[bytes]) -> Read:
    """JSON lines, not parsed; blank ones are no rows."""
    for number, line in numbered(file):
        if isinstance(line, RowError) or not line.isspace():
            yield number, line


def are_json_lines(file: IO[bytes]) -> bool:
    """Whether half of the first lines are objects, so that the very first may be broken.

    Other JSON has a line with a bracket or a comma before and behind each such line, so an odd
    number of lines is looked at. An array that is cut may lack the last. One line may be anything.
    """
    first, size = list[bytes](), 0
    for line in iter(partial(file.readline, LONGEST_ROW + 1), b""):
        size += len(line)
        if len(line) > LONGEST_ROW or len(first) == FIRST_LINES:
            break
        first += [] if line.isspace() else [line.strip()]
        if size > LONGEST_ROW and len(first) > 1 and len(first) % 2:
            break
    most = 2 * sum(map(_is_object, first)) - len(first)
    return len(first) > 1 and (most > 0 or (most == 0 and first[0].startswith(b"{")))


def _is_object(text: bytes) -> bool:
    try:
        return text.startswith(b"{") and isinstance(parse_json(text), dict)
    except RowError:
        return False


def read_paragraphs(file: IO[bytes]) -> Read:
    """Blank-line paragraphs, numbered by their first line."""
    first, size, lines = 0, 0, list[bytes]()
    for number, line in chain(numbered(file), [(0, b"")]):  # the end closes the last one
        if isinstance(line, RowError) or line.strip():
            first = first if size else number
            if isinstance(line, RowError):
                size += LONGEST_ROW + 1
            else:
                size += len(line)
                lines.append(line)
            if size > LONGEST_ROW:
                lines.clear()
        elif size:
            yield first, _paragraph(lines)
            size, lines = 0, []


def _paragraph(lines: list[bytes]) -> dict[str, str] | RowError:
    """`lines`: none where there were too many."""
    if not lines:
        return RowError(
            f"a paragraph of more than {LONGEST_ROW:,} bytes; blank lines separate paragraphs"
        )
    try:
        return {"text": b"".join(lines).decode().removeprefix("\ufeff").strip()}
    except UnicodeDecodeError as error:
        return not_utf8(error)
