"""What a command prints: progress on standard error, a summary as text or as JSON."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

import typer
from rich.console import Console

INTERRUPTED, GATE_TRIPPED = 130, 3


class StandardOutput:
    """Standard output whose reader may leave early, as `head` does: that ends the command, and is
    no failure. The parser and Rich, both of which make status 1 of it, never see it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self._while_read():
            return self.stream.write(text)

    def flush(self) -> None:
        with self._while_read():
            self.stream.flush()

    @contextmanager
    def _while_read(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            raise typer.Exit from None


def speaks() -> bool:
    """Whether this process prints what comes out: one does, however many were launched."""
    return os.environ.get("RANK", "0") == "0"


def console() -> Console:
    return Console(highlight=False)


@contextmanager
def reported(how_to_go_on: str) -> Iterator[Any]:
    """Shows long work on standard error; an interruption says how to go on."""
    from eaft_probe.view.progress_bar import TerminalProgress

    progress = TerminalProgress(Console(stderr=True))
    try:
        yield progress
    except KeyboardInterrupt:
        progress.stop()
        print(f"interrupted; {how_to_go_on}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        progress.stop()


def show_scan(opened: Any, as_json: bool, gate: Any, worst: int) -> None:
    """Prints a scan's summary; exit 3 where the gate is tripped."""
    from eaft_probe.analysis.summary import summarize, worst_examples
    from eaft_probe.view.terminal import legend, show_example, show_summary

    def tell(summary: Mapping[str, Any]) -> None:
        show_summary(console(), summary)
        for example in worst_examples(opened, worst):
            show_example(console(), opened, example)
        if worst:
            console().print(legend(opened))

    tell_summary(summarize(opened), as_json, gate, tell)


def tell_summary(
    summary: Mapping[str, Any], as_json: bool, gate: Any, tell: Callable[[Mapping[str, Any]], None]
) -> None:
    """A summary as JSON or as `tell` prints it; exit 3 where the gate is tripped."""
    tripped = gate is not None and gate(summary)
    try:
        if as_json:
            print(json.dumps(summary, ensure_ascii=False))
        else:
            tell(summary)
    finally:  # also where nobody read it to the end
        if tripped:
            raise typer.Exit(GATE_TRIPPED)
