"""README.md of a scan: the hub reads it as what the folder holds, people as its numbers."""

from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import scans_made

from eaft_probe import Scan
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.scans.shown.hub_card import MARK, card


@pytest.fixture
def made(tmp_path: Path) -> Scan:
    placed = scans_made.places(300)
    return scans_made.write(tmp_path / "scan", scans_made.measured(placed)).flag(ConflictRule())


def numbers(card: str) -> dict[str, str]:
    """The first table of the card."""
    lines = card.split("|---|---|\n" if "|---|---|\n" in card else "| --- | --- |\n")[1]
    rows = (line.strip("| ").split(" | ") for line in lines.split("\n\n")[0].splitlines())
    return dict(rows)


def test_the_hub_reads_each_table(made: Scan, tmp_path: Path) -> None:
    """As its viewer does: by the front matter of the folder's README."""
    for name, frame in {
        "tokens": made.tokens(made.columns),
        "examples": made.examples(),
        "conflicts": made.conflicts(),
    }.items():
        read = datasets.load_dataset(str(made.path), name, cache_dir=str(tmp_path / "cache"))
        assert read["train"].column_names == list(frame)
        assert len(read["train"]) == len(frame)


def test_every_parquet_file_has_a_page_index(made: Scan) -> None:
    files = [*made.path.rglob("*.parquet")]
    assert len(files) >= 3
    for file in files:
        column = pq.read_metadata(file).row_group(0).column(0)
        assert column.has_offset_index
        assert column.has_column_index


def test_the_numbers_are_those_of_the_scan(made: Scan) -> None:
    tokens, shown = made.tokens(), numbers((made.path / "README.md").read_text())
    assert shown["trained tokens"] == f"{len(tokens):,}"
    flagged = int(tokens["conflict"].sum())
    assert flagged > 0
    assert shown["confident conflicts"] == f"{flagged:,} ({100 * flagged / len(tokens):.2f} %)"
    assert float(shown["mean nll"].split()[0]) == pytest.approx(-tokens["logprob"].mean(), abs=1e-3)
    assert shown["conflict rule"] == str(ConflictRule()).replace("<", "&lt;")


def test_it_follows_the_rule(made: Scan) -> None:
    before = (made.path / "README.md").read_text()
    again = made.flag(ConflictRule(3.0, 0.5))
    after = (made.path / "README.md").read_text()
    assert before != after
    assert numbers(after)["confident conflicts"].startswith(f"{len(again.conflicts()):,} (")


@pytest.mark.parametrize("text", ["# mine\n", ""])
def test_somebodys_own_readme_stays(made: Scan, text: str) -> None:
    (made.path / "README.md").write_text(text)
    made.flag(ConflictRule(3.0, 0.5))
    assert (made.path / "README.md").read_text() == text


def test_names_of_the_data_format_nothing(made: Scan) -> None:
    made.manifest["data"]["source"] = "a`<b>|\x1b[31m` # x"
    made.flag(ConflictRule())
    text = (made.path / "README.md").read_text()
    assert "\x1b" not in text
    title = next(line for line in text.splitlines() if line.startswith("# "))
    assert title.count("`") == 4
    assert MARK in text


def test_a_name_stays_in_its_line(made: Scan) -> None:
    made.manifest["data"]["source"] = "a\n\n<img src=x>\n# b.jsonl"
    made.manifest["model"]["name"] = "m\n|n"
    text = card(made, ConflictRule(), 3)
    assert "# `a <img src=x> # b.jsonl` under `m |n`\n" in text
    assert "\n<img" not in text
    assert "a <img src=x> # b.jsonl under m |n, examples" in repr(made)


def test_small_numbers_are_not_rounded_to_none(made: Scan) -> None:
    made.manifest["counts"]["trained_tokens"] = 100_000
    assert numbers(card(made, ConflictRule(), 1))["confident conflicts"] == "1 (&lt;0.01 %)"
    assert numbers(card(made, ConflictRule(), 0))["confident conflicts"] == "0 (0 %)"
