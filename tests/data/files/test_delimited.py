"""CSV as spreadsheets, databases and pandas write it: every row comes back or says why not."""

import csv
import io
from pathlib import Path

import pytest
from files_made import lines_of, read, refusal, write

ODD = 'She said "no; never",\tthen | left\r\n\r\nby 5, or so'


def written(rows: list[list[str]], **dialect: str | int) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, **dialect).writerows(rows)  # type: ignore[arg-type]
    return text.getvalue().encode()


def test_fields_hold_quotes_commas_and_newlines(tmp_path: Path) -> None:
    content = b'text,n\r\n"say ""hi"", then\r\nleave",1\r\nplain,2\r\n\r\nlast,3'
    path = write(tmp_path, "d.csv", content)
    assert read(path) == [
        {"text": 'say "hi", then\r\nleave', "n": "1"},
        {"text": "plain", "n": "2"},
        {"text": "last", "n": "3"},
    ]
    assert lines_of(path) == [2, 4, 6]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_the_delimiter_is_told_from_the_first_rows(
    tmp_path: Path, delimiter: str, quoting: int
) -> None:
    rows = [["a", "b"], *([ODD, str(i)] for i in range(3)), ["x", ""]]
    content = written(rows, delimiter=delimiter, quoting=quoting)
    assert read(write(tmp_path, "d.csv", content)) == [{"a": a, "b": b} for a, b in rows[1:]]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_rows_longer_than_what_is_looked_at(tmp_path: Path, delimiter: str) -> None:
    rows = [["a", "b"], [ODD * 10_000, "1"], ["x", "2"]]
    content = written(rows, delimiter=delimiter)
    assert read(write(tmp_path, "d.csv", content)) == [{"a": a, "b": b} for a, b in rows[1:]]


def test_the_delimiter_can_be_named(tmp_path: Path) -> None:
    content = b"a;b:c\n1;2:3\n"
    path = write(tmp_path, "d.csv", content)
    assert read(path) == [{"a": "1", "b:c": "2:3"}]
    assert read(path, delimiter=":") == [{"a;b": "1;2", "c": "3"}]
    assert read(write(tmp_path, "d.tsv", content), delimiter=":") == [{"a;b": "1;2", "c": "3"}]


def test_one_column_needs_no_delimiter(tmp_path: Path) -> None:
    path = write(tmp_path, "d.csv", b'text\nplain; words\n"with, comma"\n')
    assert read(path) == [{"text": "plain; words"}, {"text": "with, comma"}]


def test_a_tsv_is_separated_by_tabs(tmp_path: Path) -> None:
    assert read(write(tmp_path, "d.tsv", b"text\na,b\n")) == [{"text": "a,b"}]


def test_spaces_behind_the_delimiters_of_the_header_are_none_of_the_names(tmp_path: Path) -> None:
    path = write(tmp_path, "d.csv", b'question, answer\nWhat?, "a, b"\n')
    assert read(path) == [{"question": "What?", "answer": "a, b"}]


def test_lines_of_an_old_mac(tmp_path: Path) -> None:
    assert read(write(tmp_path, "d.csv", b"a,b\r1,2\r3,4\r")) == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
    ]


def test_a_row_that_does_not_fit_is_rejected_alone(tmp_path: Path) -> None:
    content = b'a,b\n1,2\n1\n1,2,3\n\xff,5\n"x" y,6\n3,4\n'
    path = write(tmp_path, "d.csv", content)
    first, short, long, undecodable, quote, last = read(path)
    assert (first, last) == ({"a": "1", "b": "2"}, {"a": "3", "b": "4"})
    assert "not as many fields as the header (1 instead of 2)" in short
    assert "(3 instead of 2)" in long
    assert "--delimiter" in long
    assert "--encoding cp1252" in undecodable
    assert "a quote within a field must be doubled" in quote
    assert lines_of(path) == [2, 3, 4, 5, 6, 7]


BROKEN = 'a,b\n"He said "hi"\n'  # whose text goes on, or does not


@pytest.mark.parametrize(
    ("behind", "kept"),
    [
        ('x,y\nthe end",1\nx,y\n"p","q"\n', [("x", "y"), ("p", "q")]),
        ('x,y\na "word" more,z\nx,y\nthe end",1\n', []),
        ('x,y\n"then" more,z\nx,y\n', [("x", "y")]),
        ('x,y\n"left, and\nnever",came,back",1\nx,y\n', [("x", "y")]),
        ('x,y\n"p, ""q""\nr",z\n5" nails,2\n', [("x", "y"), ('p, "q"\nr', "z"), ('5" nails', "2")]),
        ("x,y\n\nz,1\n", [("x", "y"), ("z", "1")]),
    ],
)
def test_what_may_be_the_rest_of_a_broken_row_is_no_row(
    tmp_path: Path, behind: str, kept: list[tuple[str, str]]
) -> None:
    rows = read(write(tmp_path, "d.csv", (BROKEN + behind).encode()))
    assert "a quote within a field must be doubled" in rows[0]
    assert [(r["a"], r["b"]) for r in rows if isinstance(r, dict)] == kept
    assert len(rows) == 1 + len(list(csv.reader(io.StringIO(behind)))) - behind.count("\n\n")


def test_a_broken_row_ends_within_the_longest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that not all of a file is held back."""
    monkeypatch.setattr("eaft_probe.data.files.lines.LONGEST_ROW", 100)
    content = BROKEN + "x,y\n" * 30 + '5" nails,2\n'
    assert read(write(tmp_path, "d.csv", content.encode()))[1:] == [
        *({"a": "x", "b": "y"} for _ in range(30)),
        {"a": '5" nails', "b": "2"},
    ]


def test_a_quote_that_is_not_closed_is_refused(tmp_path: Path) -> None:
    """Or the rest of the file would be one field."""
    message = refusal(write(tmp_path, "d.csv", b'a,b\n1,2\n3,"4\n5,6\n7,8\n'))
    assert "line 3" in message


def test_a_header_must_be_clear(tmp_path: Path) -> None:
    assert "'a' twice" in refusal(write(tmp_path, "d.csv", b"a,b,a\n1,2,3\n"))
    assert "--encoding" in refusal(write(tmp_path, "d.csv", b"a,caf\xe9\n1,2\n"))


def test_columns_without_a_name_get_one(tmp_path: Path) -> None:
    path = write(tmp_path, "d.csv", b",text,,\n0,a,,\n")
    assert read(path) == [{"Unnamed: 0": "0", "text": "a", "Unnamed: 2": "", "Unnamed: 3": ""}]


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n", b"a,b\n"])
def test_a_file_without_rows(tmp_path: Path, content: bytes) -> None:
    assert read(write(tmp_path, "d.csv", content)) == []


def test_a_field_may_be_long_and_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "d.csv", b"text\n" + b"x" * 200_000 + b"\n")
    assert len(read(path)[0]["text"]) == 200_000
    monkeypatch.setattr("eaft_probe.data.files.lines.LONGEST_ROW", 100_000)
    for row in (b'"' + b"x" * 200_000 + b'"', b'"' + b"x\n" * 100_000 + b'"'):
        message = refusal(write(tmp_path, "d.csv", b"text\n" + row + b"\nb\n"))
        assert "100,000" in message or "limit (100000)" in message
