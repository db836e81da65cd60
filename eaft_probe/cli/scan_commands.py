"""The commands that read what is finished: no model, no torch."""

import sys
from typing import Annotated

import typer

from eaft_probe.cli.app import command
from eaft_probe.cli.fail_if import parse_check
from eaft_probe.cli.flags import Dir, FailIf, Given, Json, flags, output
from eaft_probe.cli.printing import console, print_json, print_summary, reported, show_scan
from eaft_probe.errors import BadInput
from eaft_probe.settings import (
    CompareSettings,
    ExportSettings,
    MergeSettings,
    PlotSettings,
    ReportSettings,
    RuleSettings,
    ShowSettings,
    make_settings,
)
from eaft_probe.settings.option import Panel


@command(
    "flag scan --entropy-below 0.3 --prob-below 0.1",
    "flag scan --quantile 0.15",
)
@flags(RuleSettings)
def flag(given: Given, folder: Dir, as_json: Json = False) -> None:
    """Flag a finished scan by another rule, without the model."""
    from eaft_probe.analysis.calibration import rule_of
    from eaft_probe.scans.scan import Scan

    scan = Scan.open(folder)
    rule = rule_of(scan, make_settings(RuleSettings, given))
    show_scan(scan.flag(rule), as_json, None, worst=0)


@command(
    "show scan --worst 10",
    "show scan --json --fail-if 'conflict_share>0.03'",
)
@flags(ShowSettings)
def show(given: Given, folder: Dir, as_json: Json = False, fail_if: FailIf = None) -> None:
    """Summary of a scan, its conflicts by group, and the worst examples."""
    settings, check = make_settings(ShowSettings, given), parse_check(fail_if)
    from eaft_probe.scans.scan import Scan
    from eaft_probe.view.coloured import show_example, show_legend

    scan = Scan.open(folder, verify=settings.verify)
    if settings.export is not None:
        from eaft_probe.verbs.export.export import export as verb

        with reported("nothing was written") as progress:
            written = verb(scan, settings.export, overwrite=settings.overwrite, progress=progress)
        print(f"{written}; `eaft-probe export` replaces --export", file=sys.stderr)
    if settings.example is not None:
        if as_json or check:
            raise BadInput("--example shows one example: remove --json and --fail-if")
        if not show_example(console(), scan, settings.example):
            kept = "" if scan.keeps_all else " with a kept token"
            raise BadInput(f"{folder} has no example {settings.example}{kept}")
        show_legend(console(), scan)
    elif settings.export is None or as_json or check:
        show_scan(scan, as_json, check, settings.worst, settings.rank_by)


@command(
    "export scan --out clean.jsonl --where 'probe_conflict_share < 0.05'",
    "export scan --out tokens.parquet --for tokens --masked",
)
@flags(ExportSettings)
def export(
    given: Given,
    folder: Dir,
    out: Annotated[
        str, output(help="F.jsonl, .json, .csv, .parquet or .arrow, or a data set folder")
    ] = "export.jsonl",
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="the scan's data if they have moved; repeated for a merged scan",
            metavar="DATA",
            rich_help_panel=Panel.DATA,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the data of a scan back, with scores, or as another trainer reads them.

    With --for rows, each row has its own columns and those that --where can name: `probe_example`,
    `probe_tokens`, `probe_trained_tokens`, `probe_conflicts`, `probe_` and each score that the scan
    can give, and `probe_rejected`, the reason why a row was not scored.
    """
    from eaft_probe.verbs.export.export import export as verb

    with reported("nothing was written") as progress:
        written = verb(folder, out, data=data or None, progress=progress, **given)
    if as_json:
        print_json(written.summary())
    else:
        print(written)


@command(
    "compare base tuned",
    "compare base tuned --fail-if 'groups.agreeing.forgotten_share>0.02'",
)
@flags(CompareSettings)
def compare(
    given: Given,
    first: Annotated[str, typer.Argument(metavar="A", help="a finished scan: the base model's")],
    second: Annotated[str, typer.Argument(metavar="B", help="a finished scan: the tuned model's")],
    as_json: Json = False,
    fail_if: FailIf = None,
) -> None:
    """Compare two scans: token by token if their data are the same, else as distributions."""
    check = parse_check(fail_if)
    from eaft_probe.verbs.compare import compare as verb
    from eaft_probe.view.terminal import show_comparison

    comparison = verb(first, second, **given).summary()
    print_summary(comparison, as_json, check, lambda summary: show_comparison(console(), summary))


@command(
    "merge scan-a scan-b scan-c --out whole",
    "merge scan-a scan-b --out both --json",
)
@flags(MergeSettings)
def merge(
    given: Given,
    folders: Annotated[list[str], typer.Argument(metavar="DIR", help="finished scans")],
    out: Annotated[str, output(help="folder of the merged scan")] = "eaft-merged",
    as_json: Json = False,
) -> None:
    """Join finished scans of disjoint data into one, without the model."""
    from eaft_probe.verbs.merge.merge import merge as verb

    with reported(f"the same command continues from {out}") as progress:
        merged = verb(folders, out, progress=progress, **given)
    show_scan(merged, as_json, None, worst=0)


@command(
    "plot landscape scan --out fig.pdf --data fig.csv",
    "plot gradients scan --objective sft,eaft,dft",
)
@flags(PlotSettings)
def plot(
    given: Given,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="see `eaft-probe list plots`")],
    folders: Annotated[list[str], typer.Argument(metavar="DIR", help="finished scans, or runs")],
    out: Annotated[str | None, output(help="F.png, F.svg or F.pdf", unset="DIR-KIND.png")] = None,
    data: Annotated[str | None, output(help="also its data, as F.parquet or F.csv")] = None,
) -> None:
    """Draw a figure of finished scans, without the model."""
    from eaft_probe.view import plots
    from eaft_probe.view.terminal import show_frame

    settings = make_settings(PlotSettings, given)
    out = out or plots.default_out(kind, folders[0])
    plots.require_writable(out, data, settings.overwrite)
    chart = plots.draw(kind, folders, {k: getattr(settings, k) for k in given if k != "overwrite"})
    if chart.is_table:
        same = ["scan"] if len(folders) == 1 else []
        show_frame(console(), chart.data.drop(columns=same, errors="ignore"))
    chart.write(out, overwrite=settings.overwrite)
    print(out)
    if data:
        chart.write_data(data, overwrite=settings.overwrite)
        print(data)


@command(
    "report ours theirs --out both.html",
    "report base --against tuned --out tuned.html",
)
@flags(ReportSettings)
def report(
    given: Given,
    folders: Annotated[list[str], typer.Argument(metavar="DIR", help="finished scans")],
) -> None:
    """Write finished scans as one offline HTML page: landscapes to brush, examples to read."""
    from eaft_probe.scans.scan import Scan
    from eaft_probe.view.report.report import report as write

    settings = make_settings(ReportSettings, given)
    print(
        write(
            [Scan.open(folder) for folder in folders],
            settings.out,
            settings.against,
            overwrite=settings.overwrite,
            **settings.comparing(),
        )
    )


@command(
    "list objectives",
    "list scores",
    name="list",
)
def list_entries(
    what: Annotated[str, typer.Argument(metavar="objectives|statistics|scores|formats|plots")],
) -> None:
    """List the objectives, statistics, scores, formats or plots that there are."""
    from eaft_probe.view.lists import LISTS

    console().print(LISTS[what]())
