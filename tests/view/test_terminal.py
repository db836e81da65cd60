"""What a terminal shows: the data's text, and never its control sequences."""

import io

from rich.console import Console

from eaft_probe import scan
from eaft_probe.view.terminal import CONFLICT, coloured, printable, show_example


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
    assert "[bold]y[/bold]" in out.getvalue()
