"""Rows of Parquet and Arrow files, in Python's types."""

from collections.abc import Iterator
from itertools import chain
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from eaft_probe.data.files.lines import Read
from eaft_probe.data.files.unpacking import BUFFER, BrokenFile, seekable
from eaft_probe.errors import RowError, one_line


def read_parquet(file: IO[bytes]) -> Read:
    # Arrow would hold a column of a row group, and all that it has read ahead, to the end.
    table, count = pq.ParquetFile(seekable(file), pre_buffer=False, buffer_size=BUFFER), 0
    for batch in table.iter_batches(batch_size=256):
        count += len(batch)
        yield from _rows_of(batch)
    if count != table.metadata.num_rows:  # damaged pages may end early, without an error
        raise BrokenFile(f"{count:,} of its {table.metadata.num_rows:,} rows can be read")


def _rows_of(batch: pa.RecordBatch) -> Read:
    names = batch.schema.names
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BrokenFile(f"it has the column {twice!r} twice; rename one of them")
    return chain.from_iterable(map(_rows, _decoded(batch)))


def _rows(batch: pa.RecordBatch) -> Read:
    """The rows in Python's types; one with a value that none of them holds (the year 300,000) is
    an error of its own and no other's."""
    nested = any(map(pa.types.is_nested, batch.schema.types))
    try:
        rows = batch.to_pylist(maps_as_pydicts="strict" if nested else None)  # 4.6 and 1.6 us
    except Exception as error:  # OverflowError, ValueError, pytz's KeyError, a key twice in a map
        if len(batch) == 1:
            yield None, RowError(f"a value that cannot be read: {one_line(error)}")
        else:
            yield from chain.from_iterable(_rows(batch.slice(i, 1)) for i in range(len(batch)))
    else:
        yield from ((None, without_nulls(row) if nested else row) for row in rows)


def _decoded(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """With bytes as text where they are: some writers do not mark text as such. Row by row where
    a row's are not."""
    for i, column in enumerate(batch.columns):
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            try:
                batch = batch.set_column(i, batch.schema.names[i], column.cast(pa.large_string()))
            except pa.ArrowInvalid:
                if len(batch) > 1:
                    for n in range(len(batch)):
                        yield from _decoded(batch.slice(n, 1))
                    return
    yield batch


def without_nulls(row: Any) -> Any:
    """A row of a table without the nulls that fill up its structs: a struct in Arrow has every
    field that any row of the column has, so {"city": "Rome"} comes back with "zone": None."""
    return {k: _without_nulls(v) for k, v in row.items()} if isinstance(row, dict) else row


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def read_arrow(file: IO[bytes]) -> Read:
    """The stream format that `datasets` writes, or the file format."""
    file = seekable(file)
    try:
        reader = pa.ipc.open_stream(file)
    except pa.ArrowInvalid:
        file.seek(0)
        opened = pa.ipc.open_file(file)
        reader = (opened.get_batch(i) for i in range(opened.num_record_batches))
    try:
        for batch in reader:
            batch.validate(full=True)  # Arrow trusts what it maps, and would read beyond its end
            yield from _rows_of(batch)
    except MemoryError as error:
        raise pa.ArrowInvalid("a batch needs more memory than there is; is it damaged?") from error
