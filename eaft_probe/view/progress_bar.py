"""Long work on a terminal: a bar with tokens/s and the time left, or plain lines."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eaft_probe.text import printable

PLAIN_SECONDS = 10.0  # between progress lines where there is no terminal


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
