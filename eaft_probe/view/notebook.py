"""A scan below the cell of a notebook: its summary, its worst examples, its report."""

import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas
from rich.console import Console

from eaft_probe.analysis.scores import worst_rows
from eaft_probe.analysis.summary import summarize, worst_examples
from eaft_probe.scans.scan import Scan
from eaft_probe.scans.shown.notebook import Page
from eaft_probe.view.report.report import report
from eaft_probe.view.terminal import show_summary

WIDTH = 100  # characters, as wide as the output of a cell
SUMMARY = '<pre style="line-height:1.3;white-space:pre;overflow-x:auto">{code}</pre>'


def summary_html(scan: Scan) -> str:
    """What `show` prints, in its colours."""
    console = Console(
        file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False, emoji=False
    )
    show_summary(console, summarize(scan))
    return console.export_html(inline_styles=True, code_format=SUMMARY)


def worst(scan: Scan, n: int, rank_by: str | None) -> pandas.DataFrame:
    """A row an example, all of its turns together; see `worst_examples` and `worst_rows`."""
    ranked = dict(worst_rows(scan, rank_by, n)) if rank_by is not None else {}
    order = list(ranked) if rank_by is not None else worst_examples(scan, n)
    frame = scan.frame(
        f"""
        SELECT example, min(key) AS key, coalesce(any_value(n), 0)::BIGINT AS conflicts,
               sum(trained_tokens)::BIGINT AS trained_tokens,
               sum(mean_nll * trained_tokens) / sum(trained_tokens) AS mean_nll,
               string_agg(text, chr(10) ORDER BY {scan.example_key[-1]}) AS text
        FROM examples LEFT JOIN
          (SELECT example, count(*) AS n FROM conflicts GROUP BY example) USING (example)
        WHERE list_contains(?, example) GROUP BY example""",
        [order],
    )
    frame = frame.set_index("example").loc[order].reset_index()
    return frame if rank_by is None else frame.assign(**{rank_by: list(ranked.values())})


def report_page(scan: Scan, out: str | Path | None, *given: Any, **settings: Any) -> Page:
    """See `report`, which writes it."""
    with TemporaryDirectory() as folder:
        path = report([scan], out or Path(folder, "report.html"), *given, **settings)
        return Page(path.read_text(encoding="utf-8"), None if out is None else path)
