"""The commands that load a model, or at least its tokenizer."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from eaft_probe.cli.app import app
from eaft_probe.cli.fail_if import parsed_gate
from eaft_probe.cli.flags import Data, Dir, FailIf, Json, flags
from eaft_probe.cli.printing import console, reported, show_scan, speaks, tell_summary
from eaft_probe.errors import BadInput
from eaft_probe.settings import (
    EstimateSettings,
    GradientSettings,
    RolloutSettings,
    ScanSettings,
    TrainSettings,
)


@app.command()
@flags(EstimateSettings)
def scan(
    given: dict[str, Any],
    data: Data = None,
    out: Annotated[str, typer.Option(help="the scan's folder")] = "eaft-scan",
    as_json: Json = False,
    fail_if: FailIf = None,
) -> None:
    """Score every trained token of DATA under a model."""
    gate = parsed_gate(fail_if)
    if data is None:
        given.setdefault("keep", ["topic", "planted", "planted_text"])
    if given.get("dry_run"):
        _dry_run(data, given, as_json, gate)
        return
    for name in EstimateSettings.only():
        if given.pop(name, False) and name != "dry_run":
            raise BadInput(f"--{name.replace('_', '-')} says what to estimate by: give --dry-run")
    from eaft_probe.verbs.scan.scan import scan as verb

    with reported(f"the same command goes on from what {out} has") as progress:
        finished = verb(data, out, progress=progress, **given)
    if speaks():
        show_scan(finished, as_json, gate, worst=1)


def _dry_run(data: str | None, settings: Mapping[str, Any], as_json: bool, gate: Any) -> None:
    if not speaks():
        return
    from eaft_probe.verbs.estimate.estimate import estimate

    with reported("nothing was written") as progress:
        found = estimate(data, progress=progress, **settings)
    tell_summary(
        found.summary(), as_json, gate, lambda _: console().print(str(found), markup=False)
    )


@app.command()
@flags(RolloutSettings)
def rollout(
    given: dict[str, Any],
    data: Data = None,
    out: Annotated[str, typer.Option(help="the answers, F.jsonl")] = "rollout.jsonl",
    as_json: Json = False,
) -> None:
    """Sample a model's own answers to the prompts of DATA, ready to scan."""
    from eaft_probe.analysis.summary import summarize
    from eaft_probe.verbs.rollout.rollout import rollout as verb

    with reported(f"the same command goes on from what {out}.parts has") as progress:
        done = verb(data, out, progress=progress, **given)
    if as_json:
        scanned = {"scan": summarize(done.scan)} if done.scan else {}
        print(json.dumps(done.summary() | scanned, ensure_ascii=False))
        return
    print(done)
    if done.scan:
        show_scan(done.scan, False, None, worst=1)


@app.command()
@flags(TrainSettings)
def train(
    given: dict[str, Any],
    data: Data = None,
    out: Annotated[str, typer.Option(help="the run's folder")] = "eaft-run",
) -> None:
    """Fine-tune a model on DATA with a gated objective."""
    from eaft_probe.verbs.train.train import train as verb

    with reported(f"--resume goes on from the last checkpoint in {out}") as progress:
        run = verb(data, out, progress=progress, **given)
    if speaks():
        print(f"{run}; the model and its log lie in {out}")


@app.command()
@flags(GradientSettings)
def gradients(given: dict[str, Any], folder: Dir, as_json: Json = False) -> None:
    """Exact whole-model gradient norms of sampled tokens, beside the closed forms."""
    from eaft_probe.verbs.gradients.gradients import gradients as verb
    from eaft_probe.view.terminal import show_frame

    with reported(f"the same command goes on from what {folder} has") as progress:
        found = verb(folder, progress=progress, **given)
    if as_json:
        print(json.dumps(found.summary(), ensure_ascii=False))
        return
    console().print(str(found), markup=False)
    show_frame(console(), found.agreement())


@app.command()
@flags(ScanSettings)
def render(given: dict[str, Any], data: Data = None, as_json: Json = False) -> None:
    """The first 5 rows of DATA (--limit) with the trained tokens coloured; no forward pass.

    With --json a line a rendering, of all rows unless --limit says how many.
    """
    from eaft_probe.data.reading import Rejected
    from eaft_probe.verbs import render as verb
    from eaft_probe.view.terminal import show_rendered

    out = console()
    if "sample" not in given and not as_json:
        given.setdefault("limit", 5)
    for found in verb.render(data, **given):
        if as_json:
            told = (
                verb.rejected_json(found) if isinstance(found, Rejected) else verb.as_json(*found)
            )
            print(json.dumps(told, ensure_ascii=False))
        elif isinstance(found, Rejected):
            out.print(f"row {found.row}: rejected: {found.reason}", style="yellow", markup=False)
        else:
            show_rendered(out, *found)
