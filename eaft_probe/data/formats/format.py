"""What a format is, and what it makes of a row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eaft_probe.data.messages import Message, Spelling
from eaft_probe.registry import Registry

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """One row understood. `plain` text skips the chat template; `labelled` brings its own ids."""

    key: str
    messages: tuple[Message, ...]
    plain: bool = False
    tools: Sequence[object] | None = None
    labelled: tuple[Sequence[int], Sequence[int]] | None = None  # input_ids, labels
    template_arg: Mapping[str, object] = field(default_factory=dict)  # the row's own
    not_read: tuple[str, ...] = ()  # columns of what was asked or answered that are left aside


Reading = Callable[[Row, Spelling], Example]


@dataclass(frozen=True, slots=True)
class Format:
    """A shape of rows: the columns it must have, and what it makes of them.

    `reads`: columns of PROMPT_COLUMNS that it reads in another wording.
    """

    columns: tuple[str, ...]
    meaning: str
    read: Reading
    reads: frozenset[str] = frozenset()


FORMATS = Registry[Format]("format")  # of several that fit a row, the first is taken


def row_format(
    name: str, columns: str, meaning: str, reads: str = ""
) -> Callable[[Reading], Reading]:
    """Adds a function as a format."""

    def add(read: Reading) -> Reading:
        entry = Format(tuple(columns.split()), meaning, read, frozenset(reads.split()))
        return FORMATS.add(name, entry).read

    return add
