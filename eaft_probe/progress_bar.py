"""Long work where a person watches: a bar with tokens/s and the time left, or plain lines."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from html import escape
from typing import Any, ParamSpec, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eaft_probe.progress import Progress as Receiver
from eaft_probe.progress import Silent
from eaft_probe.text import printable

PLAIN_SECONDS = 10.0  # between progress lines where there is no terminal
NOTEBOOK_SECONDS = 0.2  # between changes of the line in a notebook, each of which is a message

P = ParamSpec("P")
Result = TypeVar("Result")


class TerminalProgress:
    """A bar with tokens/s and time left on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f} tokens/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.tokens, self.last_line = 0, time.monotonic()

    def start(self, what: str, rows: int) -> None:
        self.bar.stop()
        for task in self.bar.task_ids:
            self.bar.remove_task(task)
        self.bar.add_task(what, total=rows, rate=0)
        self.bar.start()
        self.tokens, self.last_line = 0, time.monotonic()

    def advance(self, rows: int, tokens: int) -> None:
        (task,) = self.bar.tasks
        self.tokens += tokens
        rate = self.tokens / max(task.elapsed or 0, 1e-9)
        self.bar.update(task.id, advance=rows, rate=rate)
        if not self.console.is_terminal and time.monotonic() - self.last_line >= PLAIN_SECONDS:
            self.last_line = time.monotonic()
            done = f"{task.completed:.0f}/{task.total:.0f}"
            self.note(f"{task.description}: {done}, {rate:,.0f} tokens/s")

    def note(self, text: str) -> None:
        self.console.print(printable(text), style="dim", markup=False, highlight=False)

    def stop(self) -> None:
        self.bar.stop()


class NotebookProgress:
    """The same as a line below the cell of a notebook, which is rewritten as the work goes on."""

    def __init__(self) -> None:
        self.handle: Any = None

    def start(self, what: str, rows: int) -> None:
        import IPython.display

        display: Any = IPython.display.display
        self.what, self.rows, self.done, self.tokens = what, rows, 0, 0
        self.began = self.drawn = time.monotonic()
        self.handle = display(self, display_id=True)

    def advance(self, rows: int, tokens: int) -> None:
        self.done, self.tokens = self.done + rows, self.tokens + tokens
        if time.monotonic() - self.drawn >= NOTEBOOK_SECONDS:
            self._draw()

    def note(self, text: str) -> None:
        print(printable(text))

    def stop(self) -> None:
        if self.handle is not None:
            self._draw()

    def _draw(self) -> None:
        self.drawn = time.monotonic()
        self.handle.update(self)

    def __repr__(self) -> str:
        seconds = max(self.drawn - self.began, 1e-9)
        line = f"{self.what}: {self.done:,} of {self.rows:,}"
        if not self.done:
            return line
        minutes, rest = divmod(round(seconds / self.done * (self.rows - self.done)), 60)
        left = f", {minutes}:{rest:02d} left" if self.done < self.rows else ""
        return f"{line}, {self.tokens / seconds:,.0f} tokens/s{left}"

    def _repr_html_(self) -> str:
        bar = f'<progress value="{self.done}" max="{self.rows}"></progress>'
        return f"{bar} {escape(repr(self))}"


def watched(work: Callable[P, Result]) -> Callable[P, Result]:
    """Long work that shows its progress where a person watches and nobody else receives it."""

    @wraps(work)
    def run(*given: P.args, **named: P.kwargs) -> Result:
        if named.get("progress") is not None:
            return work(*given, **named)
        with _progress() as progress:
            named["progress"] = progress
            return work(*given, **named)

    return run


@contextmanager
def _progress() -> Iterator[Receiver]:
    if os.environ.get("RANK", "0") != "0":
        yield Silent()
    elif in_notebook() or (sys.stderr is not None and sys.stderr.isatty()):
        console = Console(stderr=True, emoji=False)
        shown = NotebookProgress() if in_notebook() else TerminalProgress(console)
        try:
            yield shown
        finally:
            shown.stop()
    else:
        yield Silent()


def in_notebook() -> bool:
    """Whether what is displayed appears below a cell."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config
