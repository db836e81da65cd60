"""Arrays and objects of JSON: a bad row costs itself, a broken file is refused, parts are said.

The oracle is `json.loads` of the whole file.
"""

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from files_made import ROWS, jsonl, lines_of, read, refusal, write
from hypothesis import given, settings
from hypothesis import strategies as st

from eaft_probe.data.files import json_values
from eaft_probe.data.files.options import FileOptions
from eaft_probe.data.sources import open_source

QA = [{"question": "What is snow?", "answer": "Water."}, {"question": "2, [or] {3}?", "answer": ""}]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def rows_in(content: bytes, split: str = "train") -> list[Any]:
    layout = json_values.json_layout(io.BufferedReader(io.BytesIO(content)), split)  # type: ignore[arg-type]
    rows = layout.read(io.BufferedReader(io.BytesIO(content)))  # type: ignore[arg-type]
    return [json.loads(row) if isinstance(row, bytes) else row for _, row in rows]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(values, max_size=4),
    st.sampled_from([None, 0, 2]),
    st.booleans(),
    st.integers(1, 9),
)
def test_the_elements_of_any_array_are_found(
    elements: list[Any], indent: int | None, ascii_only: bool, chunk: int
) -> None:
    """Also where a chunk ends within a string, an escape or a character."""
    content = json.dumps(elements, indent=indent, ensure_ascii=ascii_only)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "CHUNK", chunk)
        assert rows_in(content.encode("utf-8", "surrogatepass")) == elements


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(), values, min_size=1, max_size=2), min_size=2, max_size=3),
    st.data(),
)
def test_the_rows_of_any_object_are_found(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    more = data.draw(st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))
    whole = {**{f"m{k}": v for k, v in more.items()}, "data": rows, "z": "end"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "CHUNK", data.draw(st.integers(1, 9)))
        patch.setattr(json_values, "MESSAGE_KEYS", {"role"})
        assert (
            rows_in(json.dumps(whole, indent=data.draw(st.sampled_from([None, 1]))).encode())
            == rows
        )


@pytest.mark.parametrize("content", [b"", b"\n\n", b"[]", b"  ", b" [ ] \n"])
def test_an_empty_file_has_no_rows(tmp_path: Path, content: bytes) -> None:
    assert read(write(tmp_path, "d.json", content)) == []


def test_numbers_and_texts_of_an_array_are_those_of_json_lines(tmp_path: Path) -> None:
    line = b'{"a": 1, "b": 0.5, "c": NaN, "d": 18446744073709551616, "e": "\\ud83d \\ud83d\\ude00"}'
    lines = read(write(tmp_path, "d.jsonl", line + b"\n" + line))
    assert repr(read(write(tmp_path, "d.json", b"[" + line + b"," + line + b"]"))) == repr(lines)
    assert lines[0]["d"] == 2**64


@pytest.mark.parametrize(
    "bad",
    [b'{"text": "\xff"}', b'{"text": nonsense}', b"nonsense", b'"a"', b"3", b'{"a" "b"}', b""],
)
def test_a_bad_element_costs_itself(tmp_path: Path, bad: bytes) -> None:
    content = b'[{"text": "a"},\n ' + bad + b',\n {"text": "b"}]'
    path = write(tmp_path, "d.json", content)
    first, rejected, last = read(path)
    assert (first, last) == ({"text": "a"}, {"text": "b"})
    assert isinstance(rejected, str)
    assert lines_of(path) == [1, 2, 3]


def test_a_last_comma_is_followed_by_nothing(tmp_path: Path) -> None:
    assert read(write(tmp_path, "d.json", b'[{"text": "a"},\n]\n')) == [{"text": "a"}]


@pytest.mark.parametrize(
    "end",
    [b', {"text": "c', b"", b', {"text": "b"', b"] trailing", b"]]", b"}", b', {"a": [}]', b', "]'],
)
def test_a_broken_array_is_refused(tmp_path: Path, end: bytes) -> None:
    message = refusal(write(tmp_path, "d.json", b'[{"text": "a"},\n {"text": "b"}' + end))
    assert "d.json" in message
    assert "array" in message


def test_an_array_may_begin_late(tmp_path: Path) -> None:
    path = write(tmp_path, "d.json", b" " * 300_000 + b"\n" + json.dumps(QA).encode())
    assert read(path) == QA
    assert lines_of(path) == [2, 2]


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        (b'{"text": "' + b"x" * 900_000 + b'"}', "more than 100,000 bytes"),
        (b"[" * 900 + b"]" * 900, "more than 100 levels deep"),
    ],
)
def test_an_element_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, element: bytes, reason: str
) -> None:
    """100,000 brackets took 13 GB."""
    monkeypatch.setattr("eaft_probe.data.files.lines.LONGEST_ROW", 100_000)
    content = b'[{"text": "a"}, ' + element + b', {"text": "b"}]'
    first, rejected, last = read(write(tmp_path, "d.json", content))
    assert (first, last) == ({"text": "a"}, {"text": "b"})
    assert reason in rejected


def test_an_array_of_brackets_is_refused(tmp_path: Path) -> None:
    assert "more than 1,000 levels" in refusal(write(tmp_path, "d.json", b"[" * 3_000_000))


@pytest.mark.parametrize("kind", ["array", "object", "by id", "splits"])
def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for limit in ("lines.LONGEST_ROW", "json_values.CHUNK", "unpacking.BUFFER"):
        monkeypatch.setattr(f"eaft_probe.data.files.{limit}", 10_000)

    def peak(count: int) -> int:
        rows = [{"question": "x" * 100, "answer": str(i)} for i in range(count)]
        by_id = {str(i): row for i, row in enumerate(rows)}
        whole = {"array": rows, "object": {"data": rows}, "by id": by_id, "splits": {"train": rows}}
        path = write(tmp_path, "d.json", json.dumps(whole[kind]).encode())
        tracemalloc.start()
        assert sum(1 for _ in open_source(path).records()) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(4_000) < peak(500) + 100_000  # bytes; the files differ by 500,000


# --- objects ---


def test_an_object_of_splits_gives_the_split(tmp_path: Path) -> None:
    whole = {"train": QA, "test": QA[:1], "about": {"by": "us"}}
    path = write(tmp_path, "d.json", json.dumps(whole, indent=1).encode())
    assert read(path) == QA
    assert read(path, split="test") == QA[:1]
    notes = open_source(path, FileOptions(split="test")).notes()
    assert len(notes) == 1
    assert "'test', left out train, about" in notes[0]
    assert "available: train, test (--split)" in refusal(path, split="dev")


def test_two_splits_of_a_file_are_two_data_sets(tmp_path: Path) -> None:
    path = write(tmp_path, "d.json", json.dumps({"train": ROWS, "test": ROWS}).encode())
    prints = [open_source(path, FileOptions(split=s)).fingerprint() for s in ("train", "test")]
    assert prints[0] != prints[1]
    assert prints[0] == open_source(path).fingerprint()


def test_one_split_is_not_another(tmp_path: Path) -> None:
    path = write(tmp_path, "d.json", json.dumps({"test": QA}).encode())
    assert "available: test (--split)" in refusal(path)


def test_an_object_with_one_list_of_rows_gives_it(tmp_path: Path) -> None:
    path = write(tmp_path, "d.json", json.dumps({"data": QA, "version": "1"}, indent=1).encode())
    assert read(path) == QA
    assert lines_of(path) == [3, 7]
    assert "left out version" in open_source(path).notes()[0]


def test_rows_by_id_have_it_as_key(tmp_path: Path) -> None:
    by_id = {"a": QA[0], "b": QA[1], "c": {**QA[0], "key": "own"}}
    path = write(tmp_path, "d.json", json.dumps(by_id, indent=1).encode())
    assert read(path) == [{"key": "a", **QA[0]}, {"key": "b", **QA[1]}, by_id["c"]]
    assert lines_of(path) == [2, 6, 10]


@pytest.mark.parametrize(
    "row",
    [
        QA[0],
        {"messages": [{"role": "user", "content": "a"}], "source": "x"},
        {"turns": [{"from": "human", "value": "a"}]},
        {"question": "a", "answer": "b", "sources": [{"title": "t"}]},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_that_is_a_row_is_one(
    tmp_path: Path, row: dict[str, Any], indent: int | None
) -> None:
    path = write(tmp_path, "d.json", json.dumps(row, indent=indent).encode())
    assert read(path) == [row]
    assert open_source(path).notes() == []


def test_objects_one_after_the_other(tmp_path: Path) -> None:
    content = "\n".join(json.dumps(row, indent=1) for row in QA).encode()
    path = write(tmp_path, "d.json", content)
    assert read(path) == QA
    assert lines_of(path) == [1, 5]
    assert "line 5" in refusal(write(tmp_path, "cut.json", content[:-1]))


@pytest.mark.parametrize(
    "first",
    [
        b"{broken\n",
        b'{"question": "cut\n{"answer":\n',
        b'{"question": "cut\n{"answer": "}"\n',
        b'[{"question": "a"}\n',
        b'{"question": "' + b"x" * 300_000 + b"\n",
        b'{"question": "cut\n' + jsonl([{"question": "x" * 300_000}]),
    ],
)
def test_json_lines_may_begin_with_broken_ones(tmp_path: Path, first: bytes) -> None:
    rows = read(write(tmp_path, "d.json", first + jsonl(ROWS)))
    assert rows[-len(ROWS) :] == ROWS
    assert "malformed" in rows[0]
    assert len(rows) == first.count(b"\n") + len(ROWS)


@pytest.mark.parametrize("of_one", [b'[[\n{"a": 1}\n]]', b'{"data": [\n{"a": 1}\n]}'])
def test_lines_within_other_json_are_no_json_lines(tmp_path: Path, of_one: bytes) -> None:
    """However many there are, fewer than half of the lines are objects."""
    assert len(read(write(tmp_path, "one.json", of_one))) == 1
    many = b"[" + b",".join([of_one] * 200) + b"]"
    assert len(read(write(tmp_path, "many.json", many))) == 200


@pytest.mark.parametrize("cut", [40, 120])
def test_a_cut_object_is_refused(tmp_path: Path, cut: int) -> None:
    content = json.dumps({"version": "1", "data": QA}, indent=1).encode()[:cut]
    assert "not closed" in refusal(write(tmp_path, "d.json", content))
