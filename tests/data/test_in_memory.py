"""Rows of a program's own: whatever holds them, they come out as the same dictionaries."""

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import pandas
import pytest

from eaft_probe.data.files.options import FileOptions
from eaft_probe.data.sources import Source, open_source
from eaft_probe.errors import DataError

ROWS: list[dict[str, Any]] = [
    {
        "n": n,
        "prompt": f"é {n}?",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": f"{n}"}],
    }
    for n in range(5)
]
DATASET = datasets.Dataset.from_list(ROWS)
HOLDERS: dict[str, Callable[[], Any]] = {
    "list": lambda: ROWS,
    "tuple": lambda: tuple(ROWS),
    "generator": lambda: (row for row in ROWS),
    "map": lambda: map(dict, ROWS),
    "Dataset": lambda: DATASET,
    "DatasetDict": lambda: datasets.DatasetDict(train=DATASET, test=DATASET.select([0])),
    "IterableDataset": lambda: DATASET.to_iterable_dataset(),
    "frame": lambda: pandas.DataFrame(ROWS),
    "frame from Arrow": lambda: DATASET.to_pandas(),
}


def rows_of(source: Source) -> list[Any]:
    return [record.parse() for record in source.records()]


@pytest.mark.parametrize("holder", HOLDERS)
def test_the_same_rows_again_and_again(holder: str) -> None:
    source = open_source(HOLDERS[holder]())
    assert rows_of(source) == ROWS
    assert rows_of(source) == ROWS
    assert [r.row for r in source.records()] == list(range(5))
    both = zip(source.records(), source.records(), strict=True)  # two readers at a time
    assert all(a.value == b.value for a, b in both)
    assert source.fingerprint() == open_source(HOLDERS[holder]()).fingerprint()


def test_the_fingerprint_is_that_of_the_rows_whoever_holds_them() -> None:
    prints = {open_source(HOLDERS[n]()).fingerprint() for n in ("list", "generator", "frame")}
    assert len(prints) == 1
    assert open_source(iter(ROWS[:4])).fingerprint() not in prints


def test_a_split_is_chosen() -> None:
    assert len(rows_of(open_source(HOLDERS["DatasetDict"](), FileOptions(split="test")))) == 1
    with pytest.raises(DataError, match=r"without a split 'dev'; give split=, one of train, test"):
        open_source(HOLDERS["DatasetDict"](), FileOptions(split="dev"))


def test_what_a_frame_lacks_is_none() -> None:
    frame = pandas.DataFrame(
        {"a": ["x", None], "b": [1.5, np.nan], "c": pandas.array([1, None], dtype="Int64")}
    ).assign(d=pandas.to_datetime(["2026-01-01", None]), e=[[np.nan], np.array([1, 2])])
    first, second = rows_of(open_source(frame))
    assert [second[n] for n in "abcd"] == [None] * 4
    assert (first["a"], first["b"], first["c"], second["e"]) == ("x", 1.5, 1, [1, 2])
    assert type(first["c"]) is int


def test_a_streamed_row_keeps_a_column_that_is_null() -> None:
    rows = [{"a": "x", "b": {"c": "y"}}, {"a": None, "b": {"c": None}}]
    streamed = datasets.Dataset.from_list(rows).to_iterable_dataset()
    assert rows_of(open_source(streamed)) == [rows[0], {"a": None, "b": {}}]


def test_a_frame_with_two_columns_of_a_name_is_refused() -> None:
    with pytest.raises(DataError, match="the frame has the column 'a' twice"):
        open_source(pandas.DataFrame([["q", "x", "y"]], columns=["q", "a", "a"]))


@pytest.mark.parametrize("data", [3, b"rows", {"messages": []}, lambda: ROWS, print])
def test_what_holds_no_rows_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match="a list of rows, a "):
        open_source(data)


def test_a_row_that_cannot_be_copied_is_named() -> None:
    with pytest.raises(DataError, match="row 1 cannot be copied"):
        open_source(iter([{"a": 1}, {"a": lambda: None}]))


def test_an_error_of_the_generator_is_its_own() -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "a"}
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        open_source(rows())


def test_memory_does_not_grow_with_a_generator() -> None:
    tracemalloc.start()
    try:
        source = open_source({"text": f"{n} " * 2000} for n in range(3000))  # some 25 MB
        assert sum(1 for _ in source.records()) == 3000
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()
