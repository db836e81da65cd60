"""What a command prints: progress on standard error, a summary as text or as JSON."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import typer
from rich.console import Console

from eaft_probe.cli.fail_if import Check
from eaft_probe.progress import Progress

if TYPE_CHECKING:
    from eaft_probe.scans.scan import Scan

INTERRUPTED, CHECK_FAILED = 130, 3


class StandardOutput:
    """Standard output whose reader may leave early, as `head` does: that ends the command and is
    not a failure. The parser and Rich, which would exit with status 1, never see it."""

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


def is_first_process() -> bool:
    """Whether this process prints the result: one does, however many were launched."""
    return os.environ.get("RANK", "0") == "0"


def console() -> Console:
    return Console(highlight=False, emoji=False)


def print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False))


@contextmanager
def reported(how_to_resume: str) -> Iterator[Progress]:
    """Shows long work on standard error; an interruption says how to resume."""
    from eaft_probe.progress_bar import TerminalProgress

    progress = TerminalProgress(Console(stderr=True, emoji=False))
    try:
        yield progress
    except KeyboardInterrupt:
        progress.stop()
        print(f"interrupted; {how_to_resume}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        progress.stop()


def show_scan(
    scan: "Scan", as_json: bool, check: Check | None, worst: int, rank_by: str | None = None
) -> None:
    """Prints a scan's summary; exits with status 3 if the check fails. `rank_by`: the score that
    orders the worst examples, which the JSON lists then; by default their conflicts."""
    from eaft_probe.analysis.scores import worst_rows
    from eaft_probe.analysis.summary import summarize, worst_examples
    from eaft_probe.view.coloured import show_example, show_legend, show_score
    from eaft_probe.view.terminal import show_summary

    ranked = [] if rank_by is None else worst_rows(scan, rank_by, worst)

    def show(summary: Mapping[str, Any]) -> None:
        show_summary(console(), summary)
        scores = dict(ranked)
        examples = list(scores) if rank_by else worst_examples(scan, worst)
        for example in examples:
            if rank_by:
                show_score(console(), rank_by, scores[example])
            show_example(console(), scan, example)
        if examples:
            show_legend(console(), scan)

    listed = {"ranked": [{"example": e, rank_by: score} for e, score in ranked]} if rank_by else {}
    print_summary(summarize(scan) | listed, as_json, check, show)


def print_summary(
    summary: Mapping[str, Any],
    as_json: bool,
    check: Check | None,
    show: Callable[[Mapping[str, Any]], None],
) -> None:
    """A summary as JSON or as `show` prints it; exits with status 3 if the check fails."""
    failed = check is not None and check(summary)
    try:
        (print_json if as_json else show)(summary)
    finally:  # even if nobody read it to the end
        if failed:
            raise typer.Exit(CHECK_FAILED)
