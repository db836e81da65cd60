"""What a terminal shows: the data's text, and never its control sequences."""

import io
import re

import numpy as np
import pandas
import pytest
from rich.console import Console

from eaft_probe import Scan, scan
from eaft_probe.cli import printing
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.data.rendering.rendered import Rendered
from eaft_probe.text import printable
from eaft_probe.verbs.render import render
from eaft_probe.view.coloured import (
    CONFLICT,
    coloured,
    show_example,
    show_legend,
    show_rendered,
    show_trained_legend,
)
from eaft_probe.view.terminal import show_objectives


def test_control_characters_are_shown_not_obeyed() -> None:
    hostile = "a\x1b[2J\x07b\u202ec\u200bd\r\x9b31m"
    shown = printable(hostile)
    assert not any(ord(c) < 32 or ord(c) in (0x9B, 0x202E, 0x200B) for c in shown)
    assert shown.startswith("a\\x1b[2J")
    assert printable("tab\tline\nünïcode 🙂") == "tab\tline\nünïcode 🙂"


def test_coloured_text_is_the_text() -> None:
    text = coloured("one [bold]two[/bold] three", [(4, 7, CONFLICT), (6, 10, "dim")])
    assert text.plain == "one [bold]two[/bold] three"


def test_markup_and_escapes_in_data_stay_text(tmp_path, model_folder) -> None:
    rows = [{"question": "[red]x[/red]", "answer": "\x1b]0;owned\x07 [bold]y[/bold]"}]
    done = scan(rows, tmp_path / "s", model=model_folder, entropy_below=9.0, prob_below=1.0)
    out = io.StringIO()
    assert show_example(Console(file=out, width=200), done, 0)
    assert "\x1b" not in out.getvalue()
    assert "[bold]y[/bold]" in re.sub("[«»]", "", out.getvalue())


# --- without colour ---

CONVERSATION = {"question": "what is it", "answer": "it is here and no more"}


@pytest.fixture(scope="module")
def flagged(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> Scan:
    """A scan of which every second token or so is a conflict."""
    out = tmp_path_factory.mktemp("flagged") / "s"
    done = scan([CONVERSATION], out, model=model_folder, entropy_below=9.0, prob_below=1.0)
    return done.flag(ConflictRule(9.0, float(done.tokens(["prob"])["prob"].median())))


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def file() -> Console:
    return Console(file=io.StringIO(), width=200)


def terminal() -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=True, color_system="standard")


@pytest.mark.parametrize("console", [file(), terminal()], ids=["file", "terminal"])
def test_conflicts_stand_between_marks(flagged: Scan, console: Console) -> None:
    """With colours too: not everybody sees them."""
    assert show_example(console, flagged, 0)
    tokens = flagged.tokens(["token", "conflict"])
    marked = re.findall("«(.*?)»", re.sub(r"\x1b\[[\d;]*m", "", shown(console)))
    assert marked == tokens["token"][tokens["conflict"]].tolist()
    assert 0 < len(marked) < len(tokens)


def test_the_legend_says_what_the_marks_are(flagged: Scan) -> None:
    plain, coloured_one = file(), terminal()
    for console in (plain, coloured_one):
        show_legend(console, flagged)
    assert shown(plain) == "«…»: a conflict\n"
    assert "«conflict»" in shown(coloured_one)
    assert "p < 0.05" in shown(coloured_one)


def test_trained_text_is_marked_where_there_is_no_colour(model_folder: str) -> None:
    (found,) = render([CONVERSATION], model=model_folder)
    plain, coloured_one = file(), terminal()
    for console in (plain, coloured_one):
        show_rendered(console, *found)
        show_trained_legend(console)
    first, _, rest = shown(plain).partition("«")
    assert rest.startswith(CONVERSATION["answer"])
    assert CONVERSATION["question"] in first
    assert shown(plain).endswith("«…»: trained\n")
    assert "«" not in shown(coloured_one)


def test_names_of_the_data_are_not_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    printing.console().print("row :fire:", markup=False)
    assert capsys.readouterr().out == "row :fire:\n"


def test_large_counts_have_commas() -> None:
    out, zeros = file(), np.zeros((2001, 2), np.int32)
    places = zeros[:, 0], np.ones(2001, bool), zeros[:, 0].astype(np.int16), zeros
    show_rendered(out, 0, Rendered("text", "", (), True, *places, 0))
    assert "row 0: 2,000 of 2,001 tokens trained" in shown(out)


# --- tables ---


def test_numbers_of_objectives_are_whole_in_a_narrow_terminal() -> None:
    """A column of notes left them no room, and their last digits were cut off."""
    rows = {"objective": ["masked-sft", "stm", "tail"], "gain": [1.23e-5, -0.004267, None]}
    rows |= {f"exchange_rate_{i}": [0.0001234, 227.9, 1.004] for i in range(4)}
    frame = pandas.DataFrame({**rows, "note": ["", "the gain's interval reaches 0", ""]})
    out = io.StringIO()
    names = [n for n in rows if n != "objective"]
    show_objectives(Console(file=out, width=80), frame, names)
    text = out.getvalue()
    assert "…" not in text
    assert text.count("0.0001234") == 4
    assert text.splitlines()[-1] == "stm: the gain's interval reaches 0"
