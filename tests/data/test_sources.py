"""Rows from every kind of source: their number, file, line and content; what is unreadable."""

import gzip
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from files_made import ROWS, jsonl, read, refusal, rows_of, write

from eaft_probe.data.files.options import FileOptions
from eaft_probe.data.record import Record
from eaft_probe.data.sources import Files, Rows, open_source
from eaft_probe.errors import RowError

# --- many files ---


def test_a_folder_and_a_glob_number_rows_over_all_files(tmp_path: Path) -> None:
    first = write(tmp_path, "a.jsonl", jsonl(ROWS[:2]))
    write(tmp_path, "deep/b.jsonl.gz", gzip.compress(jsonl(ROWS[2:])))
    write(tmp_path, "README.md", b"not data")
    for data in (tmp_path, str(tmp_path / "**" / "*.jsonl*")):
        source = open_source(data)
        assert rows_of(source) == ROWS
        places = [(r.row, r.file, r.line) for r in source.records()]
        assert places[1] == (1, first.name, 2)
        assert places[2] == (2, "deep/b.jsonl.gz", 1)


def test_the_fingerprint_follows_content_only(tmp_path: Path) -> None:
    one = write(tmp_path, "one/a.jsonl", jsonl(ROWS))
    two = write(tmp_path, "two/b.jsonl", jsonl(ROWS))
    assert open_source(one).fingerprint() == open_source(two).fingerprint()
    two.write_bytes(jsonl(ROWS[1:]))
    assert open_source(one).fingerprint() != open_source(two).fingerprint()


# --- saved data sets, memory, standard input ---


def test_a_saved_data_set_and_one_with_splits(tmp_path: Path) -> None:
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made, "test": made.select([3])}).save_to_disk(tmp_path / "two")
    assert rows_of(open_source(tmp_path / "one")) == ROWS
    assert rows_of(open_source(tmp_path / "two")) == ROWS
    assert read(tmp_path / "two", split="test") == ROWS[3:4]
    message = refusal(tmp_path / "two", split="dev")
    assert "'dev'" in message
    assert "train, test" in message


def test_a_shard_of_a_saved_data_set_that_is_replaced_is_other_data(tmp_path: Path) -> None:
    for name, rows in (("one", ROWS), ("two", ROWS[::-1])):
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path / name)
    before = open_source(tmp_path / "one").fingerprint()
    assert before == open_source(tmp_path / "one").fingerprint()
    shard = "data-00000-of-00001.arrow"
    shutil.copy(tmp_path / "two" / shard, tmp_path / "one" / shard)
    assert open_source(tmp_path / "one").fingerprint() != before


@pytest.mark.parametrize("state", [b"{bad", b"{}"])
def test_a_saved_data_set_that_is_not_whole_is_refused(tmp_path: Path, state: bytes) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path)
    write(tmp_path, "state.json", state)
    assert "is no whole saved data set" in refusal(tmp_path)


def test_the_shards_of_a_saved_data_set_are_read_as_files(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path)
    assert rows_of(open_source(next(tmp_path.glob("*.arrow")))) == ROWS


def test_rows_in_memory() -> None:
    listed, mapped = open_source(ROWS), open_source(datasets.Dataset.from_list(ROWS))
    assert rows_of(listed) == rows_of(mapped) == ROWS
    assert [(r.row, r.file, r.line) for r in listed.records()][:2] == [
        (0, "rows", None),
        (1, "rows", None),
    ]
    assert listed.fingerprint() == Rows("other", list(ROWS)).fingerprint()
    assert listed.fingerprint() != Rows("rows", ROWS[1:]).fingerprint()
    assert mapped.fingerprint()


def test_standard_input_can_be_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(jsonl(ROWS))))
    source = open_source("-")
    assert source.name == "-"
    assert rows_of(source) == rows_of(source) == ROWS
    assert list(tmp_path.iterdir()) == []  # of a process that is killed nothing is left
    assert {(r.file, r.line) for r in source.records()} == {("-", i) for i in range(1, 6)}
    as_file = open_source(write(tmp_path, "d.jsonl", jsonl(ROWS)))
    assert source.fingerprint() == as_file.fingerprint()


def test_standard_input_is_read_at_several_places_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    many = jsonl([{"text": str(i)} for i in range(5000)])
    content = b"\xef\xbb\xbf" + many
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    source = open_source("-")
    first, second = source.records(), source.records()
    pairs = [(next(first).parse(), next(second).parse()) for _ in range(5000)]
    assert [a for a, _ in pairs] == [b for _, b in pairs] == rows_of(source)
    assert len(pairs) == 5000


def test_standard_input_may_be_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO(json.dumps(ROWS).encode("utf-16"))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=content))
    assert rows_of(open_source("-")) == ROWS


def test_nothing_named_is_the_demo() -> None:
    source = open_source(None)
    assert isinstance(source, Files)
    assert all("messages" in row for row in rows_of(source))


def test_a_record_knows_its_size() -> None:
    assert Record(0, "f", 1, b'{"a": 1}').size == 8
    assert Record(0, "f", None, {"text": "four", "n": 12}).size == 6
    assert Record(0, "f", None, RowError("no")).size == 0


# --- what cannot be read ---


def test_missing_unknown_and_empty_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no such file" in refusal(tmp_path / "none.jsonl")
    assert "no such file" in refusal("no-such-name")
    assert "no data files" in refusal(tmp_path / "empty")
    assert "no data files" in refusal(str(tmp_path / "*.csv"))


def test_a_hub_id_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **options: Any) -> Any:
        raise ConnectionError("the hub\nis far away")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert "the hub is far away" in refusal("no-such-org/no-such-data")


def test_a_hub_id_is_loaded_with_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_source("org/name", FileOptions("main", "test"), revision="v1")
    assert rows_of(source) == ROWS
    assert asked == [(("org/name", "main"), {"split": "test", "revision": "v1"})]


def test_a_pipe_is_no_data_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d.jsonl")
    assert "is not a regular file" in refusal(tmp_path / "d.jsonl")
    assert "no data files" in refusal(tmp_path)
