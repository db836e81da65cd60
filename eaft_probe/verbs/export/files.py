"""Rows → a file of the format that its ending says, or a data set folder; in constant memory.

Formats with columns need to know them before the first row is written, so the rows are read twice.
"""

import csv
import json
import math
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date, time, timedelta
from decimal import Decimal
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from eaft_probe.errors import BadInput, ProbeError, one_line
from eaft_probe.storage.atomic import written_aside

Row = dict[str, Any]
Rows = Callable[[], Iterator[Row]]  # the same rows each time
Lost = Counter[str]
Write = Callable[[Path, Rows, pa.Schema | None, Lost], None]
AT_ONCE = 100  # rows in Python's types: one may have 10 MB
GROUP_BYTES = 8_000_000  # of a row group in Arrow's, of which a viewer reads one
SAVED = ("state.json", "dataset_info.json", "data-*.arrow")  # as `datasets.save_to_disk` has it
NOT_FINITE = "number{s} that JSON has no word for (NaN or infinite), written as null"


def require_target(path: Path, nested: bool, overwrite: bool) -> None:
    """Raises `BadInput` where nothing can be written, or something else would be lost."""
    ending = path.suffix.lower()
    if not path.name:
        raise BadInput("--out is empty; give a file, or a folder for a data set")
    if ending not in FORMATS:
        raise BadInput(
            f"--out {path}: unknown ending {ending!r}; expected {', '.join(filter(None, FORMATS))} "
            f"or, for a data set folder, none"
        )
    if nested and ending == ".csv":
        raise BadInput(f"--out {path}: CSV holds no lists; write .jsonl, .parquet or a folder")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise BadInput(f"{path} exists; choose another name or give --overwrite")
    if ending and not path.is_file():
        raise BadInput(f"{path} is not a file; choose another name")
    if not ending and not _is_saved(path):
        raise BadInput(f"{path} is not a folder of a saved data set alone; choose another name")


def _is_saved(path: Path) -> bool:
    """Whether this is a data set's own folder and holds nothing else."""
    if path.is_symlink() or not (path / SAVED[0]).is_file():
        return False
    return all(any(map(entry.match, SAVED)) for entry in path.iterdir())


def write(path: Path, rows: Rows, schema: pa.Schema | None, lost: Lost) -> None:
    """Writes all rows, or nothing. `schema`: that of the rows, where it is known beforehand; `lost`
    counts what the format cannot say.

    Raises `BadInput` for rows that the format cannot hold, and `ProbeError` where it cannot write.
    """
    try:
        with _aside(path) as aside:
            FORMATS[path.suffix.lower()](aside, rows, schema, lost)
    except (pa.ArrowException, UnicodeEncodeError) as error:
        raise BadInput(
            f"{path.name} cannot hold these rows: {one_line(error)}; .jsonl holds any row"
        ) from error
    except OSError as error:
        raise ProbeError(f"cannot write {path}: {one_line(error)}") from error


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A file to write to, or a new folder, which takes the place of `path` at the end."""
    if path.suffix:
        with written_aside(path) as aside:
            yield aside
        return
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield aside
        if path.exists():
            shutil.rmtree(path)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# --- JSON and CSV ---


def _jsonl(path: Path, rows: Rows, schema: pa.Schema | None, lost: Lost) -> None:
    with path.open("wb") as file:
        file.writelines(_json_line(row, lost) + b"\n" for row in rows())


def _json(path: Path, rows: Rows, schema: pa.Schema | None, lost: Lost) -> None:
    with path.open("wb") as file:
        file.write(b"[")
        for number, row in enumerate(rows()):
            file.write((b",\n" if number else b"\n") + _json_line(row, lost))
        file.write(b"\n]\n")


def _json_line(row: Row, lost: Lost) -> bytes:
    try:
        return _encoded(row)
    except ValueError:  # NaN or an infinity
        return _encoded(_finite(row, lost))


def _encoded(row: Row) -> bytes:
    dumps = partial(json.dumps, row, allow_nan=False, default=_as_json)
    with suppress(UnicodeEncodeError):  # half of a surrogate pair, which only an escape can write
        return dumps(ensure_ascii=False).encode()
    return dumps().encode()


def _finite(value: Any, lost: Lost) -> Any:
    """With null for each number that JSON has no word for."""
    if isinstance(value, dict):
        return {name: _finite(item, lost) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, lost) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        lost[NOT_FINITE] += 1
        return None
    return value


def _as_json(value: object) -> object:
    """Raises `BadInput` for a value that JSON has no word for."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID | timedelta):
        return str(value)
    raise BadInput(f"JSON cannot hold a value of type {type(value).__name__}; write .parquet")


def _csv(path: Path, rows: Rows, schema: pa.Schema | None, lost: Lost) -> None:
    names = dict.fromkeys(name for row in rows() for name in row)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*names])
        writer.writeheader()
        writer.writerows(map(_flat, rows()))


def _flat(row: Row) -> Row:
    nested = next((name for name, value in row.items() if isinstance(value, list | dict)), None)
    if nested is not None:
        raise BadInput(f"column {nested!r} holds lists or objects, and CSV cannot: write .jsonl")
    return row


# --- Arrow ---


def _parquet(path: Path, rows: Rows, schema: pa.Schema | None, lost: Lost) -> None:
    schema = schema or _inferred(rows)
    with pq.ParquetWriter(path.absolute(), schema, compression="zstd") as writer:
        for table in _tables(rows(), schema):
            writer.write_table(table)


def _arrow(path: Path, rows: Rows, schema: pa.Schema | None, lost: Lost) -> None:
    """The stream format, as `datasets` writes it."""
    schema = schema or _inferred(rows)
    with path.open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for table in _tables(rows(), schema):
            writer.write_table(table)


def _folder(path: Path, rows: Rows, schema: pa.Schema | None, lost: Lost) -> None:
    import datasets

    datasets.disable_progress_bars()
    stream = path.with_suffix(f"{path.suffix}.arrow")
    try:
        _arrow(stream, rows, schema, lost)
        datasets.Dataset.from_file(str(stream)).save_to_disk(str(path))
    finally:
        stream.unlink(missing_ok=True)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rest = iter(rows)
    while batch := list(islice(rest, AT_ONCE)):
        yield batch


def _inferred(rows: Rows) -> pa.Schema:
    """The columns of all rows, of the types that hold all of their values."""
    schema = pa.schema([])
    for batch in _batches(rows()):
        names = dict.fromkeys(name for row in batch for name in row)
        types = [(name, pa.infer_type([row.get(name) for row in batch])) for name in names]
        schema = pa.unify_schemas([schema, pa.schema(types)], promote_options="permissive")
    return schema


def _tables(rows: Iterator[Row], schema: pa.Schema) -> Iterator[pa.Table]:
    pending, size = list[pa.Table](), 0
    for batch in _batches(rows):
        pending.append(pa.table([_column(batch, field) for field in schema], schema=schema))
        size += pending[-1].nbytes
        if size > GROUP_BYTES:
            yield pa.concat_tables(pending)
            pending, size = [], 0
    if pending:
        yield pa.concat_tables(pending)


def _column(rows: list[Row], field: pa.Field) -> pa.Array:
    try:
        return pa.array([row.get(field.name) for row in rows], field.type)
    except (pa.ArrowException, OverflowError) as error:
        raise BadInput(
            f"column {field.name!r} holds values that are not all {field.type} "
            f"({one_line(error)}): write .jsonl, which holds any row, or leave out what was "
            f"rejected by --where 'probe_rejected IS NULL'"
        ) from error


FORMATS: Mapping[str, Write] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
    "": _folder,
}
