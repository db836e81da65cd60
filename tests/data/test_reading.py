"""A record becomes what is made of it, or a rejected row with its place and reason."""

from typing import Any

import pytest

from eaft_probe.data.formats import Example, RowFormat
from eaft_probe.data.reading import Reader, Rejected
from eaft_probe.data.record import Record
from eaft_probe.data.rendering.traced import leaves
from eaft_probe.errors import BadInput, RowError


def words(example: Example) -> int:
    if "bad" in example.messages[-1].content:
        raise RowError("a bad word")
    return len(example.messages[-1].content.split())


def read(value: Any, *, line: int | None = 3, strict: bool = False) -> Any:
    return Reader(RowFormat("text"), words, strict)(Record(2, "d.jsonl", line, value))


def test_a_row_comes_with_what_is_made_of_it() -> None:
    row = {"text": "one two", "more": 1}
    assert read(row) == (row, 2)
    assert read(b'{"text": "one two", "more": 1}') == (row, 2)


@pytest.mark.parametrize(
    ("value", "reason", "key"),
    [
        (b"{", "malformed JSON", ""),
        ([1], "the row should be an object, found a list", ""),
        (RowError("a line of more than 9 bytes"), "a line of more than 9 bytes", ""),
        ({"id": 7}, "no column 'text', which format 'text' needs", ""),
        ({"text": "bad", "id": 7}, "a bad word", "7"),
    ],
)
def test_what_cannot_be_used_is_rejected_with_its_place(value: Any, reason: str, key: str) -> None:
    rejected = read(value)
    assert isinstance(rejected, Rejected)
    assert reason in rejected.reason
    assert rejected.key == key
    assert rejected.as_line() == {"row": 2, "file": "d.jsonl", "line": 3, "reason": rejected.reason}


def test_a_strict_reader_ends_at_the_first() -> None:
    assert read({"text": "one"}, strict=True)[1] == 1
    with pytest.raises(BadInput, match=r"row 2 \(d\.jsonl:3\): a bad word"):
        read({"text": "bad"}, strict=True)
    with pytest.raises(BadInput, match=r"row 2 \(d\.jsonl\): a bad word"):
        read({"text": "bad"}, line=None, strict=True)


def test_errors_of_the_program_are_no_rows() -> None:
    def broken(example: Example) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Reader(RowFormat("text"), broken)(Record(0, "d", None, {"text": "a"}))


def test_a_row_too_deep_to_walk_is_rejected() -> None:
    """Parquet and memory hold what no parser of ours has limited."""
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    call = {"function": {"name": "f", "arguments": {"a": deep}}}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]
    strings = Reader(RowFormat("messages"), lambda e: list(leaves(e.messages[1].tool_calls)))
    rejected = strings(Record(0, "d.parquet", None, {"messages": turns}))
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "the row is nested too deeply"
