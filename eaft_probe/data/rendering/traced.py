"""Text that knows where it comes from: a `str` whose pieces remember the message they are of.

A chat template is a program. Given `Traced` strings it runs as on any others, and what it writes
says of every character whether it is some message's or the template's own.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, SupportsIndex

TEMPLATE = -1  # the source of the template's own text, and the loop of text outside of any


class Piece(NamedTuple):
    """A run of characters of one origin."""

    length: int
    source: int = TEMPLATE  # number of the string it comes from
    offset: int = 0  # where in that string; `DERIVED`: made from it, not cut out of it
    loop: int = TEMPLATE  # message that the template was showing
    marked: bool = False  # between {% generation %} marks


DERIVED = -1
Pieces = tuple[Piece, ...]


class Traced(str):
    """A string in pieces, whose methods give pieces, too. Equal to and hashed as its text."""

    _pieces: Pieces

    def __new__(cls, text: str, pieces: Pieces | None = None) -> "Traced":
        traced = super().__new__(cls, text)
        traced._pieces = pieces_of(text) if pieces is None else pieces
        return traced

    def __str__(self) -> "Traced":
        return self

    # --- together ---

    def __add__(self, other: str) -> "Traced":
        return joined((self, other))

    def __radd__(self, other: str) -> "Traced":
        return joined((other, self))

    def __mul__(self, times: SupportsIndex) -> "Traced":
        return joined([self] * int(times))

    __rmul__ = __mul__

    def join(self, strings: Iterable[str]) -> "Traced":
        listed = list(strings)
        parts: list[str] = [self] * (2 * len(listed) - 1)
        parts[::2] = listed
        return joined(parts)

    # --- cut out ---

    def __getitem__(self, key: SupportsIndex | slice) -> "Traced":
        at = range(len(self))[key]
        if isinstance(at, int):
            return self._cut(at, at + 1)
        if at.step == 1:
            return self._cut(at.start, at.stop)
        return joined([self._cut(i, i + 1) for i in at])

    def __iter__(self) -> Iterator["Traced"]:  # type: ignore[override]
        return (self._cut(i, i + 1) for i in range(len(self)))

    def _cut(self, start: int, stop: int) -> "Traced":
        if start == 0 and stop == len(self):
            return self
        pieces, at = list[Piece](), 0
        for length, source, offset, loop, marked in self._pieces:
            a, b = max(start, at), min(stop, at + length)
            if a < b:
                inside = offset if offset == DERIVED else offset + a - at
                pieces.append(Piece(b - a, source, inside, loop, marked))
            at += length
        return Traced(str.__getitem__(self, slice(start, stop)), tuple(pieces))

    def strip(self, chars: str | None = None) -> "Traced":
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> "Traced":
        return self._cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None) -> "Traced":
        return self._cut(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> "Traced":
        return self._cut(len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> "Traced":
        return self._cut(0, len(str.removesuffix(self, suffix)))

    def _cuts(self, parts: Iterable[str]) -> list["Traced"]:
        """The parts of a split, which follow each other in the text."""
        cuts, at = list[Traced](), 0
        for part in parts:
            at = str.index(self, part, at)
            cuts.append(self._cut(at, at + len(part)))
            at += len(part)
        return cuts

    # --- changed ---

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> "Traced":
        """What is put in comes from where the replaced text came from, if it is the template's."""
        if not old:
            return self._derived(str.replace(self, old, new, count))
        parts, at = list[str](), 0
        for part in str.split(self, old, count):
            if parts:
                parts.append(put_in(new, self._cut(at, at + len(old))))
                at += len(old)
            parts.append(self._cut(at, at + len(part)))
            at += len(part)
        return joined(parts)

    def _derived(self, text: str) -> "Traced":
        """A text made from this one as a whole; of the same length: character by character."""
        if len(text) == len(self):
            return Traced(text, self._pieces)
        return derived(text, [self])

    def format(self, *args: object, **named: object) -> "Traced":
        return derived(str.format(self, *args, **named), [self, args, named])

    def __mod__(self, values: object) -> "Traced":
        return derived(str.__mod__(self, values), [self, values])

    def __rmod__(self, text: str) -> "Traced":
        return derived(str.__mod__(text, self), [self])

    def __format__(self, spec: str) -> str:
        return self if not spec else derived(str.__format__(self, spec), [self])


HTML_NAMES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&#39;", '"': "&#34;"}


class Html(Traced):
    """Text marked with `safe`, as Jinja knows it: text put beside it with + is escaped."""

    def __html__(self) -> "Html":
        return self

    def __add__(self, other: str) -> "Html":
        return Html(joined((self, _escaped_html(other))))

    def __radd__(self, other: str) -> "Html":
        return Html(joined((_escaped_html(other), self)))


def _escaped_html(text: str) -> Traced:
    escaped = Traced(text)
    if not hasattr(text, "__html__"):
        for character, name in HTML_NAMES.items():
            escaped = escaped.replace(character, name)
    return escaped


def _trace(names: str, origins: Callable[[Traced, Any], object]) -> None:
    """Gives `Traced` these methods of `str`; `origins`: their result, with its pieces."""
    for name in names.split():
        setattr(Traced, name, _traced_method(name, origins))


def _traced_method(name: str, origins: Callable[[Traced, Any], object]) -> Callable[..., object]:
    method = getattr(str, name)

    def traced(self: Traced, *args: object, **named: object) -> object:
        return origins(self, method(self, *args, **named))

    traced.__name__ = name  # by which a sandbox knows what may grow
    return traced


_trace("split rsplit splitlines partition rpartition", lambda s, parts: type(parts)(s._cuts(parts)))
# The same text in other letters, or filled up.
_trace("capitalize casefold lower swapcase title translate upper", Traced._derived)
_trace("center expandtabs ljust rjust zfill", Traced._derived)


def pieces_of(text: str) -> Pieces:
    """The pieces of any string; one without a history is the template's."""
    if isinstance(text, Traced):
        return text._pieces
    return (Piece(len(text)),) if text else ()


def joined(strings: Iterable[str]) -> Traced:
    listed = list(strings)
    return Traced("".join(listed), tuple(p for s in listed for p in pieces_of(s)))


def put_in(new: str, for_old: Traced) -> Traced:
    """`new` in the place of `for_old`, with whose source it is credited unless it has its own."""
    if isinstance(new, Traced) or not for_old._pieces:
        return new if isinstance(new, Traced) else joined([new])
    return Traced(new, (for_old._pieces[0]._replace(length=len(new)),) if new else ())


def derived(text: str, values: object) -> Traced:
    """A text made from all strings in `values`: of the first one's source, and of each a piece
    without length, which says that it was shown."""
    origins = [p for leaf in leaves(values) for p in pieces_of(leaf) if p.source != TEMPLATE]
    shown = [p._replace(length=0, offset=DERIVED) for p in dict.fromkeys(origins)]
    main = shown[0]._replace(length=len(text)) if shown else Piece(len(text))
    return Traced(text, (*shown, main) if text else ())


def leaves(value: object) -> Iterator[str]:
    """Every string in a value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.items() if isinstance(value, Mapping) else value:
            yield from leaves(item)


# A string in JSON is written as its number between two control characters, which JSON escapes. All
# strings are numbered, so that none can be mistaken for a number.
_NUMBERED = re.compile(r"\\u0001(\d+)\\u0002")


def as_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> Traced:
    """`tojson` of transformers: `json.dumps` that keeps the history of every string."""
    strings = list[Traced]()

    def numbered(item: object) -> object:
        if isinstance(item, str):
            strings.append(Traced(item))
            return f"\x01{len(strings) - 1}\x02"
        if isinstance(item, Mapping):
            pairs = sorted(item.items()) if sort_keys else item.items()
            return {numbered(k): numbered(v) for k, v in pairs}
        return [numbered(i) for i in item] if isinstance(item, list | tuple) else item

    text = json.dumps(numbered(value), indent=indent, separators=separators)
    parts = _NUMBERED.split(text)  # the numbers, in their order, between what stands around them
    parts[1::2] = [
        s._derived(json.dumps(str.__str__(s), ensure_ascii=ensure_ascii)[1:-1]) for s in strings
    ]
    return joined(parts)
