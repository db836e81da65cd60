"""A format bound to the names that the data's columns have, and which format that is.

It is inferred from the columns; where none fits, the error looks at the values and says the flag.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from eaft_probe.data.formats.columns import (
    Known,
    Names,
    known_columns,
    mapped,
    not_read,
    require_text_only,
    template_arg,
)
from eaft_probe.data.formats.entries import KEYS
from eaft_probe.data.formats.format import FORMATS, Example, Row
from eaft_probe.data.formats.hints import hint
from eaft_probe.data.messages import Spelling, encodable
from eaft_probe.errors import FormatError, RowError


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A format bound to the user's names: `columns` maps the format's name to the data's, `roles`
    a role of the data's messages to one of ours."""

    name: str
    columns: Names = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, row: Row) -> Example:
        """Reads one row. Raises `RowError` with the reason where it cannot."""
        row, known = _named(row, self.columns, self.name)
        entry = FORMATS[self.name]
        missing = [c for c in entry.columns if c not in row]
        if missing:
            raise RowError(f"no column {missing[0]!r}, which format {self.name!r} needs")
        if self.name not in ("text", "labelled"):
            require_text_only(row, known.media)
        example = entry.read(row, self._spelling())
        if row.get("finish") == "length" and example.messages:  # a rollout's answer that was cut
            last = replace(example.messages[-1], ends=False)
            example = replace(example, messages=(*example.messages[:-1], last))
        key = next((str(row[k]) for k in KEYS if row.get(k) is not None), "")
        return replace(
            example,
            key=encodable(key, "the key"),
            not_read=self._left(row, example, known),
            template_arg={} if example.plain or example.labelled else template_arg(row),
        )

    def _left(self, row: Row, example: Example, known: Known) -> tuple[str, ...]:
        """The columns that are not read, by the data's names."""
        left, names = list(example.not_read), known.belonging + known.media
        if names and not example.labelled:
            reads = FORMATS[self.name].reads
            left += not_read(row, example, (c for c in names if c not in reads))
        if not left:
            return ()
        theirs = dict(self.columns) | {ours: old for old, ours in known.renamed.items()}
        return tuple(str(theirs.get(c, c)) for c in left)

    def _spelling(self) -> Spelling:
        names = self.columns
        return Spelling(names.get("role"), names.get("content"), self.roles)


def _named(row: Row, columns: Names, name: str) -> tuple[Row, Known]:
    """The row by the names that a format knows, and what its columns are to it."""
    row = mapped(row, columns)
    known = known_columns(tuple(row), FORMATS[name].columns)
    if known.renamed:
        row = {known.renamed.get(k, k): v for k, v in row.items()}
    return row, known


def infer_format(
    rows: Iterable[Row], columns: Names, roles: Mapping[str, str] | None = None
) -> RowFormat:
    """The first format whose columns a row has, from the first row that any format fits.

    Raises `FormatError` where none of `rows` fits, or where token ids compete with another format.
    """
    seen: list[Row] = []
    for row in rows:
        fits = _by_names(row, columns) or _by_other_names(row, columns)
        if "labelled" in fits and len(fits) > 1:
            raise FormatError(
                f"the columns {_names(row)} fit more than one format ({', '.join(fits)}); "
                f"choose one with --format"
            )
        if fits:
            _require_whole_conversation(row, fits[0])
            return RowFormat(fits[0], columns, roles or {})
        seen.append(row)
    raise FormatError(
        f"no known format has the columns {_names(seen[0] if seen else ())}; "
        f"{hint(seen[0]) if seen else 'see `eaft-probe list formats`'}"
    )


def _by_names(row: Row, columns: Names) -> list[str]:
    """The formats whose columns a row has."""
    found = mapped(row, columns)
    return [n for n, f in FORMATS.items() if all(c in found for c in f.columns)]


def _by_other_names(row: Row, columns: Names) -> list[str]:
    """The formats whose columns a row has by other names."""
    return [n for n in FORMATS if n != "labelled" and _fits(_named(row, columns, n)[0], n)]


def _fits(row: Row, name: str) -> bool:
    if any(c not in row for c in FORMATS[name].columns):
        return False
    return name != "messages" or isinstance(row["messages"], list) or _is_list_text(row)


def _is_list_text(row: Row) -> bool:
    return isinstance(row["messages"], str) and row["messages"].lstrip().startswith("[")


def _require_whole_conversation(row: Row, name: str) -> None:
    """Raises `FormatError` for rows that are messages of a tree."""
    if name == "text" and "parent_id" in row and "role" in row:
        raise FormatError(
            "each row is one message, and 'parent_id' says which one it answers; write each "
            "conversation as one row with a column 'messages', or give --format text"
        )


def _names(columns: Iterable[str]) -> str:
    return ", ".join(map(repr, columns)) or "(none)"
