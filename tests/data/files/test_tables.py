"""Parquet and Arrow: what their types hold in Python's."""

import tracemalloc
from pathlib import Path
from random import randbytes
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from files_made import read, refusal, write

from eaft_probe.data.sources import open_source
from eaft_probe.errors import DataError


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("content", [b"", b"no table at all, only text" * 10])
def test_a_damaged_table_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = write(tmp_path, "d" + suffix, content)
    assert str(path) in refusal(path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (pa.array([b"caf\xc3\xa9"]), "café"),
        (pa.array([b"\xff\xd8"]), b"\xff\xd8"),
        (pa.array([b"a"], pa.large_binary()), "a"),
        (
            pa.array([[[("role", "user")]]], pa.list_(pa.map_(pa.string(), pa.string()))),
            [{"role": "user"}],
        ),
        (pa.array([{"a": 1, "b": None}]), {"a": 1}),
    ],
)
def test_a_value_of_a_table(tmp_path: Path, column: pa.Array, value: Any) -> None:
    pq.write_table(pa.table({"c": column}), tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet") == [{"c": value}]


def test_a_key_that_a_map_holds_twice_costs_its_row(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.string())
    column = pa.array([[("a", "1")], [("a", "1"), ("a", "2")], [("b", "1")]], kind)
    pq.write_table(pa.table({"c": column}), tmp_path / "d.parquet")
    first, twice, last = read(tmp_path / "d.parquet")
    assert (first, last) == ({"c": {"a": "1"}}, {"c": {"b": "1"}})
    assert "cannot be read" in twice


def test_a_byte_that_is_no_text_costs_no_other_row(tmp_path: Path) -> None:
    column = pa.array([b"a", b"\xff", b"c"])
    pq.write_table(pa.table({"b": column, "c": column}), tmp_path / "d.parquet")
    values = ["a", b"\xff", "c"]
    assert read(tmp_path / "d.parquet") == [{"b": v, "c": v} for v in values]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, suffix: str) -> None:
    table = pa.Table.from_arrays([pa.array(["a"])] * 3, names=["q", "a", "a"])
    if suffix == ".parquet":
        pq.write_table(table, tmp_path / "d.parquet")
    else:
        with pa.ipc.new_file(tmp_path / "d.arrow", table.schema) as writer:
            writer.write_table(table)
    assert "has the column 'a' twice" in refusal(tmp_path / f"d{suffix}")


@pytest.mark.parametrize("rows_per_group", [1000, 10_000])
def test_parquet_is_read_in_memory_that_does_not_grow_with_it(
    tmp_path: Path, rows_per_group: int
) -> None:
    path, texts = tmp_path / "d.parquet", [randbytes(200).hex() for _ in range(10_000)]
    pq.write_table(pa.table({"text": texts}), path, rows_per_group)
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_source(str(path)).records()) == len(texts)
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 3
    finally:
        tracemalloc.stop()


def test_a_damaged_table_never_loses_rows_without_a_word(tmp_path: Path) -> None:
    pq.write_table(pa.table({"q": ["q"] * 300, "a": ["aaaa"] * 300}), tmp_path / "d.parquet")
    whole, reasons = (tmp_path / "d.parquet").read_bytes(), list[str]()
    for at in range(len(whole)):
        path = write(tmp_path, "d.parquet", whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            assert len(read(path)) == 300
        except DataError as error:
            reasons.append(str(error))
    assert any("of its 300 rows can be read" in reason for reason in reasons)
