"""Archives: every frame is read, damage is refused, a .zip holds one data file."""

import lzma
from pathlib import Path

import pytest
from files_made import PACKINGS, ROWS, jsonl, lines_of, read, refusal, write, zipped

from eaft_probe.data.sources import open_source

PACKED = [packing for packing in PACKINGS if packing]
MANY = jsonl([{"text": f"{i * 7919 % 1000003}"} for i in range(5000)])


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("damage", ["cut", "body", "head"])
def test_a_damaged_archive_is_refused(tmp_path: Path, packing: str, damage: str) -> None:
    whole = PACKINGS[packing](MANY)
    middle = len(whole) // 2
    content = {
        "cut": whole[:middle],
        "body": whole[:middle] + bytes(255 - b for b in whole[middle:]),
        "head": b"not an archive" + whole,
    }[damage]
    path = write(tmp_path, f"d.jsonl{packing}", content)
    assert str(path) in refusal(path)


@pytest.mark.parametrize("packing", PACKED)
def test_every_frame_of_an_archive_is_read(tmp_path: Path, packing: str) -> None:
    content = PACKINGS[packing](jsonl(ROWS[:2])) + PACKINGS[packing](jsonl(ROWS[2:]))
    assert read(write(tmp_path, f"d.jsonl{packing}", content)) == ROWS


@pytest.mark.parametrize("damage", [3, 40, -3])
def test_a_damaged_second_stream_is_refused(tmp_path: Path, damage: int) -> None:
    second = bytearray(lzma.compress(MANY))
    second[damage] ^= 255
    first = lzma.compress(jsonl(ROWS))
    path = write(tmp_path, "d.jsonl.xz", first + bytes(second))
    assert str(path) in refusal(path)
    assert read(write(tmp_path, "e.jsonl.xz", first + bytes(600_000) + first)) == ROWS * 2


def test_a_zip_of_a_later_version_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped(data__jsonl=MANY))
    content[content.index(b"PK\x01\x02") + 6] = 200  # the version needed to unpack
    assert "cannot read" in refusal(write(tmp_path, "d.zip", bytes(content)))


def test_a_zip_holds_one_data_file(tmp_path: Path) -> None:
    beside = {"__MACOSX/._data__jsonl".replace("__MAC", "__MAC"): b"x", "README__md": b"y"}
    path = write(tmp_path, "d.zip", zipped(**{"in/data__jsonl": jsonl(ROWS)}, **beside))
    assert read(path) == read(path) == ROWS
    assert lines_of(path) == [1, 2, 3, 4, 5]
    packed = zipped(data__jsonl__gz=PACKINGS[".gz"](jsonl(ROWS)))
    assert read(write(tmp_path, "packed.ZIP", packed)) == ROWS


def test_a_zip_of_several_files_or_none_is_refused(tmp_path: Path) -> None:
    two = write(tmp_path, "two.zip", zipped(a__jsonl=MANY, b__csv=b"text\nb\n"))
    assert "found 2 (a.jsonl, b.csv); unpack it" in refusal(two)
    assert "found 0" in refusal(write(tmp_path, "none.zip", zipped(a__png=b"")))
    assert "cannot read" in refusal(write(tmp_path, "broken.zip", b"PK\x03\x04 and no more"))


def test_a_damaged_member_of_a_zip_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped(data__jsonl=MANY))
    content[200] ^= 255
    assert "cannot read" in refusal(write(tmp_path, "d.zip", bytes(content)))


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "data.xyz", b""))
    assert "unknown file type" in message
    assert ".jsonl" in message
    assert "as CSV" in refusal(write(tmp_path, "data.xlsx", b""))
    assert "unknown file type" in refusal(write(tmp_path, "data.tar.gz", b""))


def test_a_zip_of_something_else_in_a_folder_is_said(tmp_path: Path) -> None:
    write(tmp_path, "images.zip", zipped(a__png=b""))
    write(tmp_path, "a.jsonl", jsonl(ROWS))
    source = open_source(tmp_path)
    assert [r.file for r in source.records()] == ["a.jsonl"] * 5
    assert "images.zip" in "".join(source.notes())
