"""Progress is shown where a person watches, and nowhere else."""

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from eaft_probe import progress_bar
from eaft_probe.progress import Progress, Silent
from eaft_probe.progress_bar import NotebookProgress, TerminalProgress, watched


@watched
def work(*, progress: Progress | None = None) -> Progress | None:
    assert progress is not None
    progress.start("scan", 4)
    progress.note("loading \x1b[2J")
    progress.advance(3, 60)
    progress.advance(1, 40)
    return progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nobody_watches_a_test_or_another_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(work(), Silent)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("RANK", "1")
    assert isinstance(work(), Silent)


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(work(), TerminalProgress)
    assert "4/4" in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()


def test_who_receives_it_is_told_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, mine = Terminal(), Silent()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert work(progress=mine) is mine
    assert not terminal.getvalue()


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What stands below the cell of a notebook, each time that it changes."""
    pytest.importorskip("IPython")
    import IPython
    from IPython import display

    lines: list[str] = []

    def shown(value: Any, display_id: bool) -> Any:
        assert display_id
        lines.append(value._repr_html_())
        return SimpleNamespace(update=lambda v: lines.append(v._repr_html_()))

    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    monkeypatch.setattr(display, "display", shown)
    return lines


def test_a_notebook_shows_a_line(cell: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(work(), NotebookProgress)
    assert cell[0] == '<progress value="0" max="4"></progress> scan: 0 of 4'
    assert cell[-1].startswith('<progress value="4" max="4"></progress> scan: 4 of 4, ')
    assert cell[-1].endswith(" tokens/s")
    assert capsys.readouterr().out == "loading \\x1b[2J\n"


def test_the_time_left(cell: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now)
    progress = NotebookProgress()
    progress.start("scan", 10)
    for _ in range(2):
        now += 31.0
        progress.advance(1, 310)
    assert repr(progress) == "scan: 2 of 10, 10 tokens/s, 4:08 left"
