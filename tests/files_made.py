"""Files of rows, written without the package, and what a source makes of them."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from eaft_probe.data.files.options import FileOptions
from eaft_probe.data.record import Source
from eaft_probe.data.sources import open_source
from eaft_probe.errors import DataError, RowError

ROWS = [{"question": f"what is {i}?", "answer": f"é{i}\nline"} for i in range(5)]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def as_arrow(rows: list[dict[str, Any]], new: Callable[..., Any]) -> bytes:
    sink, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


SPELLINGS = {
    "jsonl": (".jsonl", jsonl(ROWS)),
    "upper case": (".JSONL", jsonl(ROWS)),
    "ndjson": (".ndjson", jsonl(ROWS)),
    "jsonlines": (".jsonlines", jsonl(ROWS)),
    "json-lines": (".json", jsonl(ROWS)),
    "json-array": (".json", json.dumps(ROWS, indent=1).encode()),
    "json-array-bom": (".json", b"\xef\xbb\xbf \n" + json.dumps(ROWS).encode()),
    "json-object": (".json", json.dumps({"version": 1, "data": ROWS}).encode()),
    "json-objects": (".json", "\n".join(json.dumps(r, indent=2) for r in ROWS).encode()),
    "csv": (".csv", as_csv(ROWS)),
    "csv-bom": (".csv", b"\xef\xbb\xbf" + as_csv(ROWS)),
    "csv-semicolon": (".csv", as_csv(ROWS, ";")),
    "csv-tab": (".csv", as_csv(ROWS, "\t")),
    "csv-utf-16": (".csv", as_csv(ROWS).decode().encode("utf-16")),
    "tsv": (".tsv", as_csv(ROWS, "\t")),
    "parquet": (".parquet", as_parquet(ROWS)),
    "arrow-stream": (".arrow", as_arrow(ROWS, pa.ipc.new_stream)),
    "arrow-file": (".arrow", as_arrow(ROWS, pa.ipc.new_file)),
}
ZSTD = zstandard.ZstdCompressor(write_checksum=True)
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".GZ": gzip.compress,
    ".zst": ZSTD.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def zipped(**members: bytes) -> bytes:
    """A .zip of these members; `__` stands for the dot of a name."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return sink.getvalue()


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def rows_of(source: Source) -> list[Any]:
    """Parsed rows, and the reasons of the rejected ones."""
    found = []
    for record in source.records():
        try:
            found.append(record.parse())
        except RowError as error:
            found.append(str(error))
    return found


def read(path: Path, **options: Any) -> list[Any]:
    """The rows of a file or folder, read with these options."""
    return rows_of(open_source(path, FileOptions(**options)))


def lines_of(path: Path, **options: Any) -> list[int | None]:
    return [record.line for record in open_source(path, FileOptions(**options)).records()]


def refusal(data: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(open_source(data, FileOptions(**options)))
    message = str(caught.value)
    assert "\n" not in message
    return message
