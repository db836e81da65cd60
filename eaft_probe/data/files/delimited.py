"""Rows of a .csv or .tsv file: what a spreadsheet, a database or pandas has written."""

import csv
import re
from collections.abc import Iterator
from functools import partial
from io import BufferedReader, StringIO, TextIOWrapper

from eaft_probe.data.files import lines
from eaft_probe.data.files.lines import ENCODING_HINT, Read
from eaft_probe.data.files.stray_quotes import Fields, trusted
from eaft_probe.data.files.unpacking import BUFFER, BrokenFile
from eaft_probe.errors import RowError, one_line

SEEN = 1 << 16  # bytes that the delimiter is told from
DELIMITERS = ",;\t|"  # the first of them that explains the first rows
_UNDECODED = re.compile("[\udc80-\udcff]")


def read_delimited(file: BufferedReader, delimiter: str | None) -> Read:
    """The rows by the names of the header. `delimiter`: None where the first rows tell it.

    Raises `BrokenFile` where a quote is not closed or a name is not clear.
    """
    csv.field_size_limit(lines.LONGEST_ROW)
    head = file.peek(BUFFER)[:SEEN].decode("utf-8", "surrogateescape")
    delimiter = delimiter or _delimiter(head)
    first = head.partition("\n")[0]
    spaced = 0 < first.count(delimiter) == first.count(f"{delimiter} ")  # a, b
    # Undecodable bytes become lone surrogates, which reject their own row and no other.
    text = TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
    raw = list[str]()
    rows = _rows(text, raw, delimiter, spaced)
    names = _names(next(rows, (0, []))[1])
    for line, fields in trusted(rows, raw, delimiter, len(names)):
        yield line, fields if isinstance(fields, RowError) else _row(names, fields, delimiter)


def _bounded(text: TextIOWrapper, raw: list[str]) -> Iterator[str]:
    for line in iter(partial(text.readline, lines.LONGEST_ROW + 1), ""):
        if len(line) > lines.LONGEST_ROW:
            raise csv.Error(f"a line of more than {lines.LONGEST_ROW:,} characters")
        raw.append(line)
        yield line


def _names(header: list[str] | RowError) -> list[str]:
    """Columns without a name get the one that pandas gives them."""
    if isinstance(header, RowError):
        raise BrokenFile(f"its header: {header}")
    if _UNDECODED.search("".join(header)):
        raise BrokenFile(f"its header is not in UTF-8; {ENCODING_HINT}")
    names = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(header)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BrokenFile(f"its header has the column {twice[0]!r} twice; rename one of them")
    return names


def _delimiter(head: str) -> str:
    """The delimiter that gives the first rows as many fields as the header, which has several."""

    def score(delimiter: str) -> tuple[float, int]:
        rows = [row for row in csv.reader(StringIO(head, newline=""), delimiter=delimiter) if row]
        widths = [len(row) for row in rows[: max(2, len(rows) - 1)]]  # the last one may be cut
        if not widths or widths[0] == 1:
            return 0, 0
        return widths.count(widths[0]) / len(widths), widths[0]

    return max(DELIMITERS, key=score)


def _rows(text: TextIOWrapper, raw: list[str], delimiter: str, spaced: bool) -> Iterator[Fields]:
    """Rows with the line where they begin, `raw` having their lines; blank lines are none."""
    reader = csv.reader(
        _bounded(text, raw), delimiter=delimiter, skipinitialspace=spaced, strict=True
    )
    while True:
        line = reader.line_num + 1
        raw.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "expected after" not in str(error):
                raise BrokenFile(f"what begins on line {line}: {one_line(error)}") from error
            reason = f"text after the quote that closes on line {reader.line_num}; "
            yield line, RowError(reason + "a quote within a field must be doubled")
        else:
            if fields:
                yield line, fields


def _row(names: list[str], fields: list[str], delimiter: str) -> dict[str, str] | RowError:
    if len(fields) != len(names):
        return RowError(
            f"not as many fields as the header ({len(fields)} instead of {len(names)}); "
            f"the delimiter is {delimiter!r}, which --delimiter changes"
        )
    text = "".join(fields)
    if not text.isascii() and _UNDECODED.search(text):
        return RowError(f"invalid UTF-8; {ENCODING_HINT}")
    return dict(zip(names, fields, strict=True))
