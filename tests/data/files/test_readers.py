"""Every type of file gives its rows, packed or not, again and again; limits and lines."""

from pathlib import Path

import pytest
from files_made import PACKINGS, ROWS, SPELLINGS, jsonl, lines_of, read, refusal, rows_of, write

from eaft_probe.data.files.readers import SUFFIXES
from eaft_probe.data.record import Record
from eaft_probe.data.sources import open_source
from eaft_probe.errors import RowError


def test_every_type_has_a_spelling() -> None:
    assert {suffix.lower() for suffix, _ in SPELLINGS.values()} | {".txt"} == set(SUFFIXES)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("packing", PACKINGS)
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
    assert "invalid UTF-8 at byte 10" in rows[2]
    assert "--encoding cp1252" in rows[2]
    assert rows[3] == "the row should be an object, found a list"


@pytest.mark.parametrize("line", [b'{"a": ' + b"1" * 5000 + b"}", b'{"a": ' + b"[" * 200_000])
def test_a_json_line_beyond_what_python_parses_is_one_rejected_row(line: bytes) -> None:
    with pytest.raises(RowError, match="malformed JSON"):
        Record(0, "f", 1, line).parse()


def test_a_json_line_that_was_cut_says_where() -> None:
    with pytest.raises(RowError, match=r"at column 7$"):
        Record(0, "f", 1, b'{"cut"\r\n').parse()


def test_depth_is_that_of_brackets_outside_of_strings() -> None:
    deep = {"text": "[{" * 500, "a": [[{"b": '"[' * 90}]] * 90}
    assert Record(0, "f", 1, jsonl([deep])).parse() == deep
    with pytest.raises(RowError, match="100 levels"):
        Record(0, "f", 1, b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}").parse()


# --- paragraphs ---


@pytest.mark.parametrize("packing", PACKINGS)
def test_text_is_read_by_paragraphs(tmp_path: Path, packing: str) -> None:
    content = b"\xef\xbb\xbf\n\none\r\ntwo\r\n\r\n \t\n\nthree \xff\n\nfour"
    path = write(tmp_path, "d.txt" + packing, PACKINGS[packing](content))
    first, undecodable, last = read(path)
    assert (first, last) == ({"text": "one\r\ntwo"}, {"text": "four"})
    assert "invalid UTF-8 at byte 6" in undecodable
    assert lines_of(path) == [3, 8, 10]


def test_a_byte_order_mark_alone_is_no_paragraph(tmp_path: Path) -> None:
    assert read(write(tmp_path, "d.txt", b"\xef\xbb\xbf\n\none\n")) == [{"text": "one"}]


def test_a_paragraph_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eaft_probe.data.files.lines.LONGEST_ROW", 100_000)
    for end in (b"\n", b" "):  # many lines, and one between two others
        content = b"a\n\nthe fox\n" + (b"the fox" + end) * 100_000 + b"it\nend\n\nb\nc\n"
        first, long, last = read(write(tmp_path, "d.txt", content))
        assert (first, last) == ({"text": "a"}, {"text": "b\nc"})
        assert "a paragraph of more than 100,000 bytes; blank lines" in long


# --- encodings ---


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp1252"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
def test_text_is_read_in_its_encoding(tmp_path: Path, suffix: str, encoding: str) -> None:
    text = {
        ".jsonl": '{"text": "café"}\n{"text": "b"}\n',
        ".json": '[{"text": "café"},\n{"text": "b"}]',
        ".csv": "text\ncafé\nb\n",
        ".txt": "café\n\nb\n",
    }[suffix]
    path = write(tmp_path, f"d{suffix}", text.encode(encoding))
    marked = encoding in ("utf-16", "utf-32", "utf-8-sig")  # the file says it by itself
    rows = read(path) if marked else read(path, encoding=encoding)
    assert rows == [{"text": "café"}, {"text": "b"}]


def test_a_byte_order_mark_wins_over_the_named_encoding(tmp_path: Path) -> None:
    path = write(tmp_path, "d.csv", b"\xef\xbb\xbftext\ncaf\xc3\xa9\n")
    assert read(path, encoding="cp1252") == [{"text": "café"}]


def test_a_byte_that_the_encoding_does_not_know_rejects_its_row(tmp_path: Path) -> None:
    path = write(tmp_path, "d.jsonl", b'{"text": "\x81"}\n{"text": "caf\xe9"}\n')
    rejected, row = read(path, encoding="cp1252")
    assert row == {"text": "café"}
    assert "invalid" in rejected


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl", "d.json"])
def test_what_is_no_text_names_the_option(tmp_path: Path, name: str) -> None:
    content = '{"text": "a"}\n'.encode("utf-16-le")
    assert "--encoding utf-16" in refusal(write(tmp_path, name, content))
