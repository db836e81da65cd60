"""JSON files that are not one row a line: an array, an object of rows, objects after each other.

They are cut at the commas and brackets of one level, and what lies between is parsed later, as a
JSON line is: a NaN, a long integer or a malformed row costs that row, as it does there.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BufferedReader, BytesIO
from typing import IO, NamedTuple

from eaft_probe.data.files import lines
from eaft_probe.data.files.lines import Read, parse_json, read_lines
from eaft_probe.data.files.unpacking import BrokenFile
from eaft_probe.data.formats import FORMATS
from eaft_probe.errors import RowError

CHUNK = 1 << 18  # bytes
TOO_DEEP = 1000  # levels; that a row is deeper than 100 is said of it alone
MOST_NAMES = 100  # that are remembered of an object's members
SPLIT_NAMES = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")
MESSAGE_KEYS = {"role", "from", "speaker", "author"}
_STEPS = {b"[": 1, b"{": 1, b"]": -1, b"}": -1, b",": 0}
_KEY = re.compile(rb'\s*("(?:[^"\\]++|\\.)*+")\s*:\s*', re.DOTALL)


def _up_to(marks: bytes) -> re.Pattern[bytes]:
    """What stands before a mark that is in no string, and the mark (1). At the end of a chunk
    there is none, but perhaps a string that has begun (2) and a backslash that is its last (3)."""
    string = rb'(?:[^"\\]++|\\.)*+'
    return re.compile(
        rb'(?:[^"%b]++|"%b")*+(?:([%b])|(")%b(\\?)\Z|\Z)' % (marks, string, marks, string),
        re.DOTALL,
    )


_BRACKET, _BRACKET_OR_COMMA = _up_to(rb"\][{}"), _up_to(rb"\][{},")


def _cut(file: IO[bytes], within: bool = True) -> Iterator[tuple[bytes, bytes]]:
    """A file in pieces, each with the mark that ends it, or none where only a chunk ended.

    `within` an array or object that has begun, the marks are its commas and its closing bracket;
    what comes after that has no marks. Else they are the brackets that close a value.
    """
    depth, begun = 0, b""  # begun: an open string, carried into the next chunk
    while chunk := file.read(CHUNK):
        text, start, at = begun + chunk, len(begun), 0
        while depth >= 0:
            level = within and not depth
            match = (_BRACKET_OR_COMMA if level else _BRACKET).match(text, at)
            assert match is not None
            mark, at = match[1], match.end()
            if mark is None:
                begun = (match[2] or b"") + (match[3] or b"")
                break
            depth += _STEPS[mark]
            if depth > TOO_DEEP:
                raise BrokenFile(f"it is nested more than {TOO_DEEP:,} levels deep")
            if depth < 0 or (level and mark == b",") or not (within or depth):
                yield text[start : at - 1 if within else at], mark
                start = at
        yield text[start:], b""


class _Member(NamedTuple):
    """An element of an array, or one `"key": value` of an object."""

    content: bytes  # no more of it than a row may have
    size: int  # bytes
    line: int  # where it begins
    offset: int  # in the file, white space before it included
    mark: bytes  # that ends it; none where the file ended first

    @property
    def row(self) -> bytes | RowError:
        if self.size > lines.LONGEST_ROW:
            return RowError(f"a row of more than {lines.LONGEST_ROW:,} bytes")
        return self.content.strip()


def _members(pieces: Iterator[tuple[bytes, bytes]], line: int, offset: int) -> Iterator[_Member]:
    content, size, newlines = b"", 0, 0
    for piece, mark in pieces:
        content += piece[: max(lines.LONGEST_ROW - size, 0)]
        size, newlines = size + len(piece), newlines + piece.count(b"\n")
        if mark:
            yield _Member(content, size, line + _blank_lines(content), offset, mark)
            line, offset = line + newlines, offset + size + len(mark)
            content, size, newlines = b"", 0, 0
    yield _Member(content, size, line + _blank_lines(content), offset, b"")


def _blank_lines(content: bytes) -> int:
    """How many lines end before it begins."""
    return content.count(b"\n", 0, len(content) - len(content.lstrip()))


@dataclass(frozen=True, slots=True)
class _Start:
    """A place within a file."""

    offset: int
    line: int


def _inside(
    pieces: Iterator[tuple[bytes, bytes]], start: _Start, closing: bytes
) -> Iterator[_Member]:
    """The members up to the closing bracket. Raises `BrokenFile` where that does not come."""
    what = "array" if closing == b"]" else "object"
    for member in _members(pieces, start.line, start.offset):
        if member.mark not in (b",", closing):
            raise BrokenFile(
                f"its {what} is not closed; what begins on line {member.line} cannot be read. "
                f"Is the file cut, or is a quote or a bracket missing there?"
            )
        if member.mark == b"," or member.content.strip():  # a last comma is followed by nothing
            yield member
        if member.mark == closing:
            return


def _begin(file: BufferedReader) -> tuple[bytes, _Start]:
    """Reads the first byte that is not blank, and says where the next is."""
    offset, line = 0, 1
    while head := file.peek():
        blank = len(head) - len(head.lstrip())
        file.read(blank)
        offset, line = offset + blank, line + head[:blank].count(b"\n")
        if blank < len(head):
            break
    return file.read(1), _Start(offset + 1, line)


# --- reading ---


@dataclass(frozen=True, slots=True)
class JsonLayout:
    """How the rows of a file lie in it; which of its members is read, and which are not.

    `split`: the name of that member, where it is one of several or named as a split.
    """

    read: Callable[[BufferedReader], Read]
    part: str = ""
    left_out: Sequence[str] = ()
    split: str = ""


def json_layout(file: BufferedReader, split: str) -> JsonLayout:
    """How to read a file of JSON. Raises `BrokenFile`, also where it has no such split."""
    first, start = _begin(file)
    if first == b"[":
        return JsonLayout(_read_array)
    if first != b"{":
        return JsonLayout(read_lines)
    outline = _outline(file, start)
    if not outline.alone:
        return JsonLayout(_read_objects if outline.several_lines else read_lines)
    if outline.arrays and not outline.is_row:
        name = outline.chosen(split)
        others = [n for n in outline.names if n != name]
        is_split = len(outline.arrays) > 1 or name in SPLIT_NAMES
        read = partial(_read_part, start=outline.arrays[name])
        return JsonLayout(read, name, others, name if is_split else "")
    by_id = outline.names and outline.only_objects and not outline.is_row
    return JsonLayout(_read_by_id if by_id else _read_objects)


def _read_array(file: BufferedReader) -> Read:
    _, start = _begin(file)
    pieces = _cut(file)
    yield from ((m.line, m.row) for m in _inside(pieces, start, b"]"))
    if any(piece.strip() for piece, _ in pieces):
        raise BrokenFile("there is text after the end of its array; is a bracket too many there?")


def _read_part(file: IO[bytes], start: _Start) -> Read:
    """The rows of an array within an object."""
    left = start.offset
    while left and (skipped := file.read(min(left, CHUNK))):
        left -= len(skipped)
    yield from ((m.line, m.row) for m in _inside(_cut(file), start, b"]"))


def _read_by_id(file: BufferedReader) -> Read:
    _, start = _begin(file)
    for member in _inside(_cut(file), start, b"}"):
        try:
            yield member.line, _row_of_id(member.row)
        except RowError as error:
            yield member.line, error


def _row_of_id(member: bytes | RowError) -> object:
    if isinstance(member, RowError):
        raise member
    parsed = parse_json(b"{" + member + b"}")
    assert isinstance(parsed, dict)
    ((name, row),) = parsed.items()
    return {"key": name, **row} if isinstance(row, dict) else row


def _read_objects(file: IO[bytes]) -> Read:
    """Objects over several lines, one after the other."""
    for member in _members(_cut(file, within=False), 1, 0):
        if member.mark:
            yield member.line, member.row
        elif member.content.strip():
            raise BrokenFile(f"what begins on line {member.line} is not a whole object")


# --- an object that is the whole file ---


@dataclass(slots=True)
class _Outline:
    """What the first object of a file holds."""

    alone: bool = True  # nothing follows it
    several_lines: bool = False
    names: list[str] = field(default_factory=list)  # of the first members
    only_objects: bool = True
    arrays: dict[str, _Start] = field(default_factory=dict)  # those of rows
    messages: bool = False  # an array holds messages

    @property
    def is_row(self) -> bool:
        """Whether it is a row by itself, whatever its arrays hold."""
        return self.messages or any(set(self.names).issuperset(f.columns) for f in FORMATS.values())

    def chosen(self, split: str) -> str:
        """The array that is read: that of the split, or the only one if it is not named as one."""
        if split in self.arrays:
            return split
        if len(self.arrays) == 1 and (only := next(iter(self.arrays))) not in SPLIT_NAMES:
            return only
        raise BrokenFile(
            f"it has no split {split!r}; available: {', '.join(self.arrays)} (--split)"
        )

    def add(self, member: _Member) -> None:
        key = _KEY.match(member.content)
        value = member.content[key.end() : key.end() + 1] if key else b""
        self.only_objects &= value == b"{"
        if key and len(self.names) < MOST_NAMES:
            self.names.append(str(parse_json(key[1])))
            if value == b"[":
                self._add_array(self.names[-1], member, key)

    def _add_array(self, name: str, member: _Member, key: re.Match[bytes]) -> None:
        element = _first_element(member.content[key.end() + 1 :])
        if not isinstance(element, dict):
            return
        if name in self.arrays:
            raise BrokenFile(f"it has {name!r} twice; rename one of them")
        self.messages |= not MESSAGE_KEYS.isdisjoint(element)
        newlines = member.content[: key.end()].lstrip().count(b"\n")
        self.arrays[name] = _Start(member.offset + key.end() + 1, member.line + newlines)


def _outline(file: IO[bytes], start: _Start) -> _Outline:
    outline, pieces = _Outline(), _cut(file)
    for member in _inside(pieces, start, b"}"):
        outline.add(member)
        outline.several_lines |= b"\n" in member.content
    outline.alone = not any(piece.strip() for piece, _ in pieces)
    return outline


def _first_element(array: bytes) -> object:
    """`array`: what of it is known, after its bracket."""
    try:
        first = next(_inside(_cut(BytesIO(array)), _Start(0, 1), b"]"), None)
        return first and parse_json(first.content)
    except (BrokenFile, RowError):
        return None
