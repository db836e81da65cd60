"""The data of a command: its source, its format, and which of its rows count."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain, islice
from typing import Any

from eaft_probe.data.files.options import FileOptions
from eaft_probe.data.formats import FORMATS, MAPPABLE, Row, RowFormat, infer_format, reached
from eaft_probe.data.messages import ROLES
from eaft_probe.data.sources import Source, open_source
from eaft_probe.data.units import Selection
from eaft_probe.errors import BadInput, DataError, RowError
from eaft_probe.progress import Silent
from eaft_probe.settings import DataSettings, ScanSettings
from eaft_probe.settings.option import flag

SILENT = Silent()
FORMAT_ROWS = 100  # rows looked at to infer the format; malformed ones come first at times


def open_data(
    data: Any, settings: ScanSettings, note: Callable[[str], object] = SILENT.note
) -> Source:
    """The source that `data` and the settings name. `note` is told what of it is not read."""
    options = FileOptions.of(asdict(settings))
    source = open_source(data, options, settings.data_revision or settings.revision)
    for line in source.notes():
        note(line)
    return source


def require_obeyed(source: Source, settings: DataSettings) -> None:
    """Raises `BadInput` where a setting chooses among parts that the source does not have."""
    parts = {"split": "splits", "config_name": "configurations", "data_revision": "revisions"}
    for name, what in parts.items():
        if settings.changed(name) and not source.obeys(name):
            raise BadInput(f"{source.name} has no {what}: remove {flag(name)}")


def data_format(
    source: Source, settings: ScanSettings, reserved: Collection[str] = ()
) -> RowFormat:
    """The format the user named, or the one that the first rows fit.

    `reserved`: names that --keep must leave. Raises `FormatError`, or `BadInput` where --keep or
    --columns names what is not there.
    """
    rows, reasons = list[Row](), list[str]()
    for record in islice(source.records(), FORMAT_ROWS):
        try:
            rows.append(record.parse())
        except RowError as error:
            reasons.append(str(error))
    if not rows:
        why = f"none of its first rows can be read: {reasons[0]}" if reasons else "it has no rows"
        raise DataError(f"{source.name}: {why}")
    _require_columns(rows, settings, reserved)
    _require_roles(settings.roles)
    if settings.format is None:
        return infer_format(rows, settings.columns, settings.roles)
    FORMATS[settings.format]  # raises for an unknown name
    return RowFormat(settings.format, settings.columns, settings.roles)


def _require_columns(
    rows: Sequence[Row], settings: ScanSettings, reserved: Collection[str]
) -> None:
    known = {key for row in rows for key in chain(row, _message_keys(row))}
    for ours, theirs in settings.columns.items():
        if theirs not in known and not any(reached(row, theirs) for row in rows):
            raise BadInput(f"--columns {ours}={theirs}: the data has no {theirs!r}")
        if ours not in MAPPABLE:
            columns = ", ".join(sorted(MAPPABLE))
            raise BadInput(f"--columns {ours}=…: no format has a column {ours!r}; use {columns}")
    for name in settings.keep:
        if name in reserved:
            raise BadInput(f"--keep {name}: the examples always have a column of that name")
        if not any(name in row for row in rows):
            raise BadInput(f"--keep {name}: no such column; available: {', '.join(rows[0])}")


def _require_roles(roles: Mapping[str, str]) -> None:
    known = dict.fromkeys(ROLES.values())
    for theirs, ours in roles.items():
        if ours not in known:
            raise BadInput(
                f"--roles {theirs}={ours}: unknown role {ours!r}; use one of {', '.join(known)}"
            )


def _message_keys(row: Row) -> Iterator[str]:
    """The keys of a row's messages, which --columns role=…,content=… may name."""
    for value in row.values():
        for item in value if isinstance(value, list) else ():
            yield from item if isinstance(item, dict) else ()


def selection(settings: ScanSettings) -> Selection:
    """The rows that --limit, --sample and --seed choose."""
    return Selection(settings.limit, settings.sample, settings.seed)
