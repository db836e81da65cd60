"""Which rows of a CSV file can be trusted behind one whose quotes do not match.

Nothing says where such a row ends: `"He said "hi"⏎and left,then",b` may be one row or two. The next
quote tells. If it opens a field of a whole row, the rows before it are rows; if it stands within a
field, they may be the rest of the broken row's text, and are rejected with it.
"""

import re
from collections.abc import Iterator

from eaft_probe.data.files import lines
from eaft_probe.errors import RowError

Fields = tuple[int, list[str] | RowError]  # of a row, with the line where it begins
IN_DOUBT = "it follows a row whose quotes do not match, and may be a part of that row's text"


def trusted(rows: Iterator[Fields], raw: list[str], delimiter: str, width: int) -> Iterator[Fields]:
    """The rows, those in doubt as errors. `raw`: the lines of the row that `rows` gave last;
    `width`: fields of a row."""
    mark = re.escape(delimiter)
    field = rf'(?: *"(?:[^"]|"")*+"|[^"{mark}]*+)'
    whole = re.compile(rf"{field}(?:{mark}{field})*+\s*")
    for line, fields in rows:
        yield line, fields
        if isinstance(fields, RowError):
            yield from _behind_a_broken_one(rows, raw, whole, width)


def _behind_a_broken_one(
    rows: Iterator[Fields], raw: list[str], whole: re.Pattern[str], width: int
) -> Iterator[Fields]:
    """The rows up to the first whole one with quotes. No row is longer than LONGEST_ROW, so the
    broken one ends within that many characters."""
    waiting, size = list[Fields](), 0
    for line, fields in rows:
        text = "".join(raw)
        size += len(text)
        if '"' not in text and size <= lines.LONGEST_ROW:
            waiting.append((line, fields))
            continue
        is_row = isinstance(fields, list) and len(fields) == width and whole.fullmatch(text)
        if is_row or '"' not in text:
            yield from (*waiting, (line, fields))
            return
        yield from ((number, RowError(IN_DOUBT)) for number, _ in waiting)
        yield line, fields if isinstance(fields, RowError) else RowError(IN_DOUBT)
        waiting, size = [], 0
    yield from waiting
