"""Rows from every kind of source: their number, file, line and content; what is unreadable."""

import bz2
import csv
import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from eaft_probe.data.readers import READERS
from eaft_probe.data.record import Record
from eaft_probe.data.sources import Files, Rows, Source, open_source
from eaft_probe.errors import DataError, RowError

ROWS = [{"question": f"what is {i}?", "answer": f"é{i}\nline"} for i in range(5)]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
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
    "json-lines": (".json", jsonl(ROWS)),
    "json-array": (".json", json.dumps(ROWS, indent=1).encode()),
    "json-array-bom": (".json", b"\xef\xbb\xbf \n" + json.dumps(ROWS).encode()),
    "csv": (".csv", as_csv(ROWS)),
    "csv-bom": (".csv", b"\xef\xbb\xbf" + as_csv(ROWS)),
    "parquet": (".parquet", as_parquet(ROWS)),
    "arrow-stream": (".arrow", as_arrow(ROWS, pa.ipc.new_stream)),
    "arrow-file": (".arrow", as_arrow(ROWS, pa.ipc.new_file)),
}
ZSTD = zstandard.ZstdCompressor(write_checksum=True)
PACKINGS = {"": bytes, ".gz": gzip.compress, ".zst": ZSTD.compress}


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


def refusal(data: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(open_source(data, **options))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_reader_has_a_spelling() -> None:
    assert {suffix for suffix, _ in SPELLINGS.values()} | {".txt"} == set(READERS)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_file_gives_its_rows_again_and_again(tmp_path: Path, spelling: str, packing: str) -> None:
    suffix, content = SPELLINGS[spelling]
    path = write(tmp_path, f"data{suffix}{packing}", PACKINGS[packing](content))
    source = open_source(str(path))
    assert rows_of(source) == ROWS
    assert rows_of(source) == ROWS
    assert [r.row for r in source.records()] == list(range(5))
    assert {r.file for r in source.records()} == {path.name}


# --- JSON lines ---


def test_json_lines_count_records_and_name_their_lines(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{bad\r\n{"text": "\xff"}\n \t \n[1]\n{"text": "b"}'
    source = open_source(write(tmp_path, "d.jsonl", content))
    assert [(r.row, r.line) for r in source.records()] == [(0, 1), (1, 3), (2, 4), (3, 6), (4, 7)]
    rows = rows_of(source)
    assert rows[0] == {"text": "a"}
    assert rows[4] == {"text": "b"}
    assert "malformed JSON" in rows[1]
    assert rows[2] == "invalid UTF-8 at byte 10"
    assert rows[3] == "the row should be an object, found a list"


@pytest.mark.parametrize("line", [b'{"a": ' + b"1" * 5000 + b"}", b'{"a": ' + b"[" * 200_000])
def test_a_json_line_beyond_what_python_parses_is_one_rejected_row(line: bytes) -> None:
    with pytest.raises(RowError, match="malformed JSON"):
        Record(0, "f", 1, line).parse()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"[]", b"  "])
def test_an_empty_file_has_no_rows(tmp_path: Path, content: bytes) -> None:
    assert rows_of(open_source(write(tmp_path, "d.json", content))) == []


# --- JSON arrays ---


@pytest.mark.parametrize(
    "broken", [b', {"text": "c', b"", b', {"text": "\xff"}]', b", nonsense]", b"] trailing"]
)
def test_a_broken_array_keeps_the_rows_before_it(tmp_path: Path, broken: bytes) -> None:
    content = b'[{"text": "a"}, {"text": "b"}' + broken
    rows = rows_of(open_source(write(tmp_path, "d.json", content)))
    assert rows[:2] == [{"text": "a"}, {"text": "b"}]
    assert len(rows) == 3
    assert "malformed JSON array" in rows[2]


def test_an_array_of_other_things_rejects_each_of_them(tmp_path: Path) -> None:
    rows = rows_of(open_source(write(tmp_path, "d.json", b'["a", {"text": "b"}, 3]')))
    assert rows[1] == {"text": "b"}
    assert rows[0] == "the row should be an object, found text"
    assert "the row should be an object" in rows[2]


def test_numbers_of_an_array_are_those_of_json_lines(tmp_path: Path) -> None:
    content = b'[{"a": 1, "b": 0.5, "c": 1e3, "d": [1, 2]}]'
    row = rows_of(open_source(write(tmp_path, "d.json", content)))[0]
    assert row == json.loads(content)[0]
    assert [type(v) for v in row.values()] == [int, float, float, list]


# --- CSV ---


def test_csv_fields_hold_quotes_commas_and_newlines(tmp_path: Path) -> None:
    content = b'text,n\r\n"say ""hi"", then\r\nleave",1\r\nplain,2\r\n'
    source = open_source(write(tmp_path, "d.csv", content))
    assert rows_of(source) == [
        {"text": 'say "hi", then\r\nleave', "n": "1"},
        {"text": "plain", "n": "2"},
    ]
    assert [r.line for r in source.records()][1] == 4


def test_a_csv_row_with_another_number_of_fields_is_rejected_alone(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, "d.csv", b"a,b\n1,2\n1\n1,2,3\n\xff,5\n3,4\n"))
    rows = rows_of(source)
    assert rows[0] == {"a": "1", "b": "2"}
    assert rows[1:3] == ["not as many fields as the header"] * 2
    assert rows[4] == {"a": "3", "b": "4"}
    assert [r.line for r in source.records()] == [2, 3, 4, 5, 6]


def test_a_csv_field_may_be_long(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, "d.csv", b"text\n" + b"x" * 200_000 + b"\n"))
    assert len(rows_of(source)[0]["text"]) == 200_000


# --- paragraphs ---


@pytest.mark.parametrize("packing", PACKINGS)
def test_text_is_read_by_paragraphs(tmp_path: Path, packing: str) -> None:
    content = b"\xef\xbb\xbf\n\none\r\ntwo\r\n\r\n \t\n\nthree \xff\n\nfour"
    source = open_source(write(tmp_path, "d.txt" + packing, PACKINGS[packing](content)))
    lines = [r.line for r in source.records()]
    rows = rows_of(source)
    assert rows[-3:] == [{"text": "one\r\ntwo"}, "invalid UTF-8 at byte 6", {"text": "four"}]
    assert lines[-3:] == [3, 8, 10]


def test_a_byte_order_mark_alone_is_no_paragraph(tmp_path: Path) -> None:
    assert rows_of(open_source(write(tmp_path, "d.txt", b"\xef\xbb\xbf\n\none\n"))) == [
        {"text": "one"}
    ]


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
    assert rows_of(open_source(tmp_path / "two", split="test")) == ROWS[3:4]
    message = refusal(tmp_path / "two", split="dev")
    assert "'dev'" in message
    assert "train, test" in message


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
    content = b"\xef\xbb\xbf" + MANY
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    source = open_source("-")
    first, second = source.records(), source.records()
    pairs = [(next(first).parse(), next(second).parse()) for _ in range(5000)]
    assert [a for a, _ in pairs] == [b for _, b in pairs] == rows_of(source)
    assert len(pairs) == len(MANY.splitlines())


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
    write(tmp_path, "data.xyz", b"")
    (tmp_path / "empty").mkdir()
    assert "no such file" in refusal(tmp_path / "none.jsonl")
    assert "no such file" in refusal("no-such-name")
    assert "unknown file type" in refusal(tmp_path / "data.xyz")
    assert ".jsonl" in refusal(tmp_path / "data.xyz")
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
    source = open_source("org/name", config_name="main", split="test", revision="v1")
    assert rows_of(source) == ROWS
    assert asked == [(("org/name", "main"), {"split": "test", "revision": "v1"})]


def packed(content: bytes, packing: str) -> bytes:
    return PACKINGS[packing](content)


MANY = jsonl([{"text": f"{i * 7919 % 1000003}"} for i in range(5000)])


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "body", "head"])
def test_a_damaged_archive_is_refused(tmp_path: Path, packing: str, damage: str) -> None:
    whole = packed(MANY, packing)
    middle = len(whole) // 2
    content = {
        "cut": whole[:middle],
        "body": whole[:middle] + bytes(255 - b for b in whole[middle:]),
        "head": b"not an archive" + whole,
    }[damage]
    path = write(tmp_path, f"d.jsonl{packing}", content)
    assert str(path) in refusal(path)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_every_frame_of_an_archive_is_read(tmp_path: Path, packing: str) -> None:
    content = packed(jsonl(ROWS[:2]), packing) + packed(jsonl(ROWS[2:]), packing)
    assert rows_of(open_source(write(tmp_path, f"d.jsonl{packing}", content))) == ROWS


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("content", [b"", b"no table at all, only text" * 10])
def test_a_damaged_table_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = write(tmp_path, "d" + suffix, content)
    assert str(path) in refusal(path)


def test_another_compression_is_an_unknown_type(tmp_path: Path) -> None:
    assert "unknown file type" in refusal(write(tmp_path, "d.jsonl.bz2", bz2.compress(MANY)))


# --- limits ---


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eaft_probe.data.readers.LONGEST_ROW", 100_000)


def test_a_paragraph_has_a_limit(tmp_path: Path, short: None) -> None:
    content = b"a\n\n" + b"the fox\n" * 100_000 + b"\nb\nc\n"
    first, long, last = rows_of(open_source(write(tmp_path, "d.txt", content)))
    assert (first, last) == ({"text": "a"}, {"text": "b\nc"})
    assert "a paragraph of more than 100,000 bytes; blank lines" in long


@pytest.mark.parametrize("row", [b'"' + b"x" * 200_000 + b'"', b'"' + b"x\n" * 100_000 + b'"'])
def test_a_csv_field_has_a_limit(tmp_path: Path, short: None, row: bytes) -> None:
    assert "more than 100,000" in refusal_of(tmp_path, "d.csv", b"text\n" + row + b"\nb\n")


def refusal_of(folder: Path, name: str, content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        list(open_source(write(folder, name, content)).records())
    return str(caught.value).replace("field larger than field limit (100000)", "more than 100,000")


@pytest.mark.parametrize(
    ("element", "said"),
    [
        (b'{"text": "' + b"x" * 300_000 + b'"}', "more than 100,000 bytes"),
        (b"[" * 200_000, "more than 100 levels deep"),
    ],
)
def test_an_element_of_an_array_has_a_limit(
    tmp_path: Path, short: None, element: bytes, said: str
) -> None:
    """100,000 brackets took 13 GB."""
    content = b'[{"text": "a"}, ' + element + b"]"
    first, rejected = rows_of(open_source(write(tmp_path, "d.json", content)))
    assert first == {"text": "a"}
    assert said in rejected


def test_depth_is_that_of_brackets_outside_of_strings() -> None:
    deep = {"text": "[{" * 500, "a": [[{"b": '"[' * 90}]] * 90}
    assert Record(0, "f", 1, json.dumps(deep).encode()).parse() == deep
    with pytest.raises(RowError, match="100 levels"):
        Record(0, "f", 1, b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}").parse()


def test_a_pipe_is_no_data_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d.jsonl")
    assert "is not a regular file" in refusal(tmp_path / "d.jsonl")
    assert "no data files" in refusal(tmp_path)
