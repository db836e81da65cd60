"""Long work on a terminal: a bar with tokens/s and the time left, or plain lines."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from eaft_probe.text import printable

PLAIN_SECONDS = 10.0  # between progress lines where there is no terminal


class TerminalProgress:
    """A bar with tokens/s and time left on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.what, self.rows, self.done, self.tokens = "", 0, 0, 0
        self.began = self.said = time.monotonic()

    def start(self, what: str, rows: int) -> None:
        self.what, self.rows, self.done, self.tokens = what, rows, 0, 0
        self.began = self.said = time.monotonic()
        if self.console.is_terminal:
            rate = TextColumn("{task.fields[rate]:,.0f} tokens/s")
            columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), rate)
            self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console)
            self.task = self.bar.add_task(what, total=rows, rate=0)
            self.bar.start()

    def advance(self, rows: int, tokens: int) -> None:
        self.done, self.tokens = self.done + rows, self.tokens + tokens
        now = time.monotonic()
        rate = self.tokens / max(now - self.began, 1e-9)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=self.done, rate=rate)
        elif now - self.said >= PLAIN_SECONDS:
            self.said = now
            self.note(f"{self.what}: {self.done}/{self.rows}, {rate:,.0f} tokens/s")

    def note(self, text: str) -> None:
        self.console.print(printable(text), style="dim", markup=False, highlight=False)

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
