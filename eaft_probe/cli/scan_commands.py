"""The commands that read what is finished: no model, no torch."""

import sys
from typing import Annotated, Any

import typer

from eaft_probe.cli.app import app
from eaft_probe.cli.fail_if import parsed_gate
from eaft_probe.cli.flags import Dir, FailIf, Json, flags
from eaft_probe.cli.printing import console, reported, show_scan, tell_summary
from eaft_probe.errors import BadInput
from eaft_probe.settings import (
    CompareSettings,
    MergeSettings,
    PlotSettings,
    ReportSettings,
    RuleSettings,
    ShowSettings,
    make_settings,
)


@app.command()
@flags(RuleSettings)
def flag(given: dict[str, Any], folder: Dir, as_json: Json = False) -> None:
    """Flag a finished scan by another rule, without the model."""
    from eaft_probe.columns.conflicts import ConflictRule
    from eaft_probe.scans.scan import Scan

    wanted: RuleSettings = make_settings(RuleSettings, given)
    rule = ConflictRule.given(wanted.entropy_below, wanted.prob_below, wanted.quantile)
    show_scan(Scan.open(folder).flag(rule), as_json, None, worst=0)


@app.command()
@flags(ShowSettings)
def show(
    given: dict[str, Any],
    folder: Dir,
    as_json: Json = False,
    fail_if: FailIf = None,
) -> None:
    """Summary of a scan, its conflicts by group, and the worst examples."""
    wanted: ShowSettings = make_settings(ShowSettings, given)
    gate = parsed_gate(fail_if)
    from eaft_probe.scans.scan import Scan
    from eaft_probe.view.terminal import legend, show_example

    opened = Scan.open(folder, verify=wanted.verify)
    if wanted.export is not None:
        from eaft_probe.verbs.export.export import export as verb

        rows = verb(opened, wanted.export, wanted.overwrite)
        print(f"{rows:,} rows in {wanted.export}", file=sys.stderr)
    if wanted.example is not None and (as_json or gate):
        raise BadInput("--example shows one example; --json and --fail-if speak of the whole scan")
    if wanted.example is not None:
        if not show_example(console(), opened, wanted.example):
            kept = "" if opened.keeps_all else " of which a token was kept"
            raise BadInput(f"{folder} has no example {wanted.example}{kept}")
        console().print(legend(opened))
    elif wanted.export is None or as_json or gate:
        show_scan(opened, as_json, gate, wanted.worst)


@app.command()
@flags(CompareSettings)
def compare(
    given: dict[str, Any],
    first: Annotated[str, typer.Argument(metavar="A", help="a finished scan: the base model's")],
    second: Annotated[str, typer.Argument(metavar="B", help="a finished scan: the tuned model's")],
    as_json: Json = False,
    fail_if: FailIf = None,
) -> None:
    """Compare two scans: token by token where the data are the same, else as distributions."""
    gate = parsed_gate(fail_if)
    from eaft_probe.verbs.compare import compare as verb
    from eaft_probe.view.terminal import show_comparison

    found = verb(first, second, **given).summary()
    tell_summary(found, as_json, gate, lambda summary: show_comparison(console(), summary))


@app.command()
@flags(MergeSettings)
def merge(
    given: dict[str, Any],
    folders: Annotated[list[str], typer.Argument(metavar="A B...", help="finished scans")],
    out: Annotated[str, typer.Option(help="the folder of the whole")] = "eaft-merged",
    as_json: Json = False,
) -> None:
    """Join finished scans of disjoint data into one, without the model."""
    from eaft_probe.verbs.merge.merge import merge as verb

    with reported(f"the same command goes on from what {out} has") as progress:
        merged = verb(folders, out, progress=progress, **given)
    show_scan(merged, as_json, None, worst=0)


@app.command()
@flags(PlotSettings)
def plot(
    given: dict[str, Any],
    kind: Annotated[str, typer.Argument(metavar="KIND", help="see `eaft-probe list plots`")],
    folders: Annotated[list[str], typer.Argument(metavar="DIR...", help="finished scans, or runs")],
    out: Annotated[str | None, typer.Option(help="F.png, F.svg or F.pdf; KIND.png")] = None,
    data: Annotated[str | None, typer.Option(help="its data as F.parquet or F.csv")] = None,
) -> None:
    """Draw a figure of finished scans, without the model."""
    from eaft_probe.view import plots
    from eaft_probe.view.terminal import show_frame

    wanted = make_settings(PlotSettings, given)
    out = out or f"{kind}.png"
    plots.require_writable(out, data, wanted.overwrite)
    taken = {k: getattr(wanted, k) for k in given if k != "overwrite"}
    chart = plots.draw(kind, folders, taken)
    if kind in plots.TABLES:
        show_frame(console(), chart.data.drop(columns=["scan"] if len(folders) == 1 else []))
    written = [(chart.write, out), *([(chart.write_data, data)] if data else [])]
    for write, path in written:
        write(path, overwrite=wanted.overwrite)
        print(path)


@app.command()
@flags(ReportSettings)
def report(given: dict[str, Any], folder: Dir) -> None:
    """Write a finished scan as one offline HTML page: its landscape to brush, its examples."""
    from eaft_probe.scans.scan import Scan
    from eaft_probe.view.report.report import report as write

    wanted: ReportSettings = make_settings(ReportSettings, given)
    print(
        write(
            Scan.open(folder),
            wanted.out,
            wanted.against,
            overwrite=wanted.overwrite,
            **wanted.comparing(),
        )
    )


@app.command("list")
def list_entries(
    what: Annotated[str, typer.Argument(metavar="objectives|statistics|formats|plots")],
) -> None:
    """What there is: objectives, statistics, formats or plots."""
    from eaft_probe.view.lists import LISTS

    console().print(LISTS[what]())
