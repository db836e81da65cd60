"""Which files of a folder are read, by split and configuration, and that the others are named."""

from pathlib import Path

import pytest
from files_made import ROWS, jsonl, read, refusal, write

from eaft_probe.data.files.folders import split_of
from eaft_probe.data.files.options import FileOptions
from eaft_probe.data.sources import open_source

TRAIN, TEST, MORE = ([row] for row in ROWS[:3])


def notes(folder: Path, **options: str) -> str:
    return "\n".join(open_source(folder, FileOptions(**options)).notes())


@pytest.mark.parametrize(
    "name",
    [
        ".hidden.jsonl",
        ".ipynb_checkpoints/data-checkpoint.jsonl",
        "__MACOSX/._data.jsonl",
        "dataset_infos.json",
        "deep/state.json",
        "README.txt",
    ],
)
def test_what_is_no_data_is_left_out_and_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, "data.jsonl", jsonl(ROWS))
    write(tmp_path, name, b"{}")
    assert read(tmp_path) == ROWS
    assert f"left out {name} (" in notes(tmp_path)


def test_what_might_be_data_is_named(tmp_path: Path) -> None:
    write(tmp_path, "in/data.jsonl", jsonl(ROWS))
    write(tmp_path, "out/more.jsonl", jsonl(ROWS))
    for name in ("b.xlsx", "c.tar.gz", "d", "README.md", ".git/config"):
        write(tmp_path, f"in/{name}", b"x")
    (tmp_path / "in" / "sub").symlink_to(tmp_path / "out")
    assert read(tmp_path / "in") == ROWS
    assert notes(tmp_path / "in").splitlines() == [
        f"{tmp_path / 'in'}: left out b.xlsx, c.tar.gz, d (unknown type)",
        f"{tmp_path / 'in'}: left out sub (a link)",
    ]


def test_what_a_glob_matches_besides_data_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path, name, jsonl(ROWS))
    for name in ("c.xlsx", "README.md", "dataset_infos.json", "sub/more.jsonl"):
        write(tmp_path, name, b"{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    for pattern in (f"{tmp_path}/*", "~/*"):
        assert read(Path(pattern)) == ROWS + ROWS
        assert notes(Path(pattern)).splitlines() == [
            f"{tmp_path}: left out sub (a folder)",
            f"{tmp_path}: left out c.xlsx (unknown type)",
            f"{tmp_path}: left out dataset_infos.json (no rows)",
        ]
    assert notes(tmp_path / "**").count("left out") == 2  # it enters the folder
    assert notes(tmp_path / "*.jsonl") == ""
    assert "left out c.xlsx (unknown type)" in refusal(tmp_path / "*.xlsx")


def test_a_folder_may_be_hidden_itself(tmp_path: Path) -> None:
    write(tmp_path, ".cache/data.jsonl", jsonl(ROWS))
    assert read(tmp_path / ".cache") == ROWS
    assert not notes(tmp_path / ".cache")
    assert "left out .cache/data.jsonl (hidden)" in refusal(tmp_path)


def test_many_files_are_not_all_named(tmp_path: Path) -> None:
    for i in range(9):
        write(tmp_path, f".{i}.jsonl", b"")
    write(tmp_path, "data.jsonl", jsonl(ROWS))
    assert ".0.jsonl, .1.jsonl, .2.jsonl and 6 more (hidden)" in notes(tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("my-train.jsonl", "train"),
        ("train2.jsonl", "train"),
        ("training/a.jsonl", "train"),
        ("val_set.csv", "validation"),
        ("dev.json", "validation"),
        ("test/train.jsonl", "train"),
        ("data/test_sft-00000-of-00001.parquet", "test_sft"),
        ("data/dev-00000-of-00001.parquet", "validation"),
        ("evaluation.jsonl", "test"),
        ("pretrain.jsonl", None),
        ("latest.jsonl", None),
        ("devices/a.jsonl", None),
    ],
)
def test_the_split_that_a_name_says(name: str, split: str | None) -> None:
    assert split_of(Path(name)) == split


def test_a_folder_of_splits_obeys_the_split(tmp_path: Path) -> None:
    write(tmp_path, "data/train-00000-of-00002.jsonl", jsonl(TRAIN))
    write(tmp_path, "data/train-00001-of-00002.jsonl", jsonl(MORE))
    write(tmp_path, "data/test-00000-of-00001.jsonl", jsonl(TEST))
    assert read(tmp_path) == TRAIN + MORE
    assert read(tmp_path, split="test") == TEST
    assert "left out data/test-00000-of-00001.jsonl (not of split 'train'" in notes(tmp_path)
    assert "available: test, train (--split)" in refusal(tmp_path, split="validation")


def test_files_that_name_no_split_are_for_training(tmp_path: Path) -> None:
    write(tmp_path, "chats.jsonl", jsonl(MORE))
    write(tmp_path, "chats_val.jsonl", jsonl(TEST))
    assert read(tmp_path) == MORE
    assert read(tmp_path, split="val") == TEST
    assert "left out chats_val.jsonl" in notes(tmp_path)
    assert "available: validation" in refusal(tmp_path, split="test")
    write(tmp_path, "train.jsonl", jsonl(TRAIN))
    assert read(tmp_path) == TRAIN
    assert "chats.jsonl, chats_val.jsonl (not of split 'train'" in notes(tmp_path)


def test_a_folder_of_another_split_alone_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "test.jsonl", jsonl(TEST))
    assert "has no split 'train'; available: test (--split)" in refusal(tmp_path)


CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/part*
  - split: held_out
    path: main/rest.jsonl
- config_name: extra
  data_files: extra.jsonl
---
# Some data
"""


def test_a_card_of_the_hub_says_which_files_make_a_split(tmp_path: Path) -> None:
    write(tmp_path, "README.md", CARD.encode())
    write(tmp_path, "main/part1.jsonl", jsonl(TRAIN))
    write(tmp_path, "main/rest.jsonl", jsonl(TEST))
    write(tmp_path, "extra.jsonl", jsonl(MORE))
    assert read(tmp_path, config_name="main") == TRAIN
    assert read(tmp_path, config_name="main", split="held_out") == TEST
    assert read(tmp_path, config_name="extra") == MORE
    dashed = CARD.replace("license: mit", "pretty_name: a --- b")
    write(tmp_path, "README.md", dashed.encode())
    assert read(tmp_path, config_name="extra") == MORE
    assert "split 'held_out', configuration 'extra'" in notes(tmp_path, config_name="main")
    assert "available: main, extra (--config-name)" in refusal(tmp_path)
    assert "available: train, held_out" in refusal(tmp_path, config_name="main", split="test")


def test_a_card_that_lists_files_of_another_type(tmp_path: Path) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files: t.xml\n---\n"
    write(tmp_path, "README.md", card.encode())
    write(tmp_path, "t.xml", b"<a/>")
    assert "its README.md lists t.xml; expected one of .jsonl, " in refusal(tmp_path)


@pytest.mark.parametrize(
    "card", [b"# Data", b"---\nlicense: mit\n---\n", b"---\n[\n---\n", b"\xff"]
)
def test_a_card_that_lists_no_files(tmp_path: Path, card: bytes) -> None:
    write(tmp_path, "README.md", card)
    write(tmp_path, "a.jsonl", jsonl(ROWS))
    assert read(tmp_path) == ROWS
