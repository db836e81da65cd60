"""A name → entry mapping whose misses suggest the nearest name."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TypeVar

from eaft_probe.errors import UnknownName

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry]):
    """Entries of one `kind` in the order they were added.

    >>> colours = Registry[int]("colour")
    >>> colours.add("red", 1)
    1
    >>> colours["rad"]
    Traceback (most recent call last):
    eaft_probe.errors.UnknownName: unknown colour 'rad' (did you mean 'red'?); known: red
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> Entry:
        assert name not in self._entries, f"{self.kind} {name!r} is registered twice"
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> Entry:
        if name in self._entries:
            return self._entries[name]
        near = get_close_matches(name, self._entries, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UnknownName(f"unknown {self.kind} {name!r}{hint}; known: {', '.join(self)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
