"""The commands that load a model, or at least its tokenizer."""

from dataclasses import fields
from typing import Annotated

from eaft_probe.cli.app import command
from eaft_probe.cli.fail_if import Check, parse_check
from eaft_probe.cli.flags import Data, Dir, FailIf, Given, Json, flags, output
from eaft_probe.cli.printing import (
    console,
    is_first_process,
    print_json,
    print_summary,
    reported,
    show_scan,
)
from eaft_probe.errors import BadInput
from eaft_probe.settings import (
    EstimateSettings,
    ForecastSettings,
    GradientSettings,
    RenderSettings,
    RolloutSettings,
    ScanSettings,
    TrainSettings,
    make_settings,
)
from eaft_probe.settings.option import flag


@command(
    "scan data.jsonl --model org/name --out scan",
    "scan data.jsonl --model org/name --dry-run",
)
@flags(EstimateSettings)
def scan(
    given: Given,
    data: Data = None,
    out: Annotated[str, output(help="folder of the scan")] = "eaft-scan",
    as_json: Json = False,
    fail_if: FailIf = None,
) -> None:
    """Score every trained token of DATA under a model."""
    check = parse_check(fail_if)
    if data is None:
        given.setdefault("keep", ["topic", "planted", "planted_text"])
    if given.get("dry_run"):
        _dry_run(data, given, as_json, check)
        return
    of_scan = {f.name for f in fields(ScanSettings)}
    for name in [f.name for f in fields(EstimateSettings) if f.name not in of_scan]:
        if given.pop(name, False):
            raise BadInput(f"{flag(name)} is a setting of the estimate: add --dry-run")
    from eaft_probe.verbs.scan.scan import scan as verb

    with reported(f"the same command continues from {out}") as progress:
        finished = verb(data, out, progress=progress, **given)
    if is_first_process():
        show_scan(finished, as_json, check, worst=1)


def _dry_run(data: str | None, settings: Given, as_json: bool, check: Check | None) -> None:
    if not is_first_process():
        return
    from eaft_probe.verbs.estimate.estimate import estimate

    with reported("nothing was written") as progress:
        cost = estimate(data, progress=progress, **settings)
    print_summary(
        cost.summary(), as_json, check, lambda _: console().print(str(cost), markup=False)
    )


@command(
    "rollout data.jsonl --model org/name --n 4 --out own.jsonl",
    "rollout data.jsonl --model org/name --out own.jsonl --then-scan own-scan",
)
@flags(RolloutSettings)
def rollout(
    given: Given,
    data: Data = None,
    out: Annotated[str, output(help="file for the answers, F.jsonl")] = "rollout.jsonl",
    as_json: Json = False,
) -> None:
    """Sample a model's own answers to the prompts of DATA, ready to scan."""
    from eaft_probe.analysis.summary import summarize
    from eaft_probe.verbs.rollout.rollout import rollout as verb

    with reported(f"the same command continues from {out}.parts") as progress:
        answers = verb(data, out, progress=progress, **given)
    if as_json:
        scanned = {"scan": summarize(answers.scan)} if answers.scan else {}
        print_json(answers.summary() | scanned)
        return
    print(answers)
    if answers.scan:
        show_scan(answers.scan, False, None, worst=1)


@command(
    "train data.jsonl --model org/name --objective eaft --out run --eval-data held.jsonl "
    "--retain-data chats.jsonl",
    "train data.jsonl --model org/name --lora-r 16 --out run",
)
@flags(TrainSettings)
def train(
    given: Given,
    data: Data = None,
    out: Annotated[str, output(help="folder of the run")] = "eaft-run",
) -> None:
    """Fine-tune a model on DATA with a gated objective."""
    from eaft_probe.verbs.train.train import train as verb

    with reported(f"--resume continues from the last checkpoint in {out}") as progress:
        run = verb(data, out, progress=progress, **given)
    if is_first_process():
        print(f"{run}; the model and its log are in {out}")


@command(
    "gradients scan --sample 512",
    "gradients scan --sample 200 --seed 1 --overwrite --json",
)
@flags(GradientSettings)
def gradients(given: Given, folder: Dir, as_json: Json = False) -> None:
    """Exact whole-model gradient norms of sampled tokens, next to the closed forms."""
    from eaft_probe.verbs.gradients.gradients import gradients as verb
    from eaft_probe.view.terminal import show_frame

    with reported(f"the same command continues from {folder}") as progress:
        norms = verb(folder, progress=progress, **given)
    if as_json:
        print_json(norms.summary())
        return
    console().print(str(norms), markup=False)
    ends = {"low": "95 % from", "high": "95 % to"}
    show_frame(console(), norms.agreement().rename(columns=ends))


@command(
    "forecast data.jsonl --model org/name --retain-data chats.jsonl --eval-data held.jsonl "
    "--out forecast",
    "forecast forecast --objective dft,chord",
)
@flags(ForecastSettings)
def forecast(
    given: Given,
    data: Data = None,
    out: Annotated[str, output(help="folder of the forecast")] = "eaft-forecast",
    as_json: Json = False,
    fail_if: FailIf = None,
) -> None:
    """Forecast what each objective would teach and cost, before training.

    Of a finished forecast DIR: the first-order effect of any --objective, without the model.
    """
    from eaft_probe.scans.alignment import is_forecast

    check = parse_check(fail_if)
    if data is not None and is_forecast(data):
        _finished_forecast(data, given, as_json, check)
        return
    from eaft_probe.verbs.forecast.forecast import forecast as verb
    from eaft_probe.view.terminal import show_objectives

    with reported(f"the same command continues from {out}") as progress:
        done = verb(data, out, progress=progress, **given)

    def show(_: object) -> None:
        console().print(str(done), markup=False)
        rates = ["exchange_rate", "exchange_rate_low", "exchange_rate_high"]
        show_objectives(console(), done.table, ["gain", "retain_nll_change", "retain_kl", *rates])

    print_summary(done.summary(), as_json, check, show)


def _finished_forecast(folder: str, given: Given, as_json: bool, check: Check | None) -> None:
    if others := sorted({*given} - {"objective", "set"}):
        raise BadInput(f"{folder} is a finished forecast: remove {flag(others[0])}")
    from eaft_probe.verbs.forecast.first_order import by_objective, first_order
    from eaft_probe.view.terminal import show_objectives

    settings: ForecastSettings = make_settings(ForecastSettings, given)
    table = first_order(folder, settings.objective, settings.set)
    summary = {"path": folder, "objectives": by_objective(table)}
    figures = ["retain_change", "eval_change", "ratio", "ratio_low", "ratio_high"]
    print_summary(summary, as_json, check, lambda _: show_objectives(console(), table, figures))


@command(
    "render data.jsonl --model org/name",
    "render data.jsonl --model org/name --limit 5 --json",
)
@flags(RenderSettings)
def render(given: Given, data: Data = None, as_json: Json = False) -> None:
    """Show the first 5 rows of DATA (--limit) with the trained tokens coloured; no forward pass.

    With --json: one line per rendering, of all rows unless --limit says how many.
    """
    from eaft_probe.data.reading import Rejected
    from eaft_probe.verbs import render as verb
    from eaft_probe.view.coloured import show_rendered, show_trained_legend

    out, shown = console(), 0
    if "sample" not in given and not as_json:
        given.setdefault("limit", 5)
    with reported("run the same command again") as progress:
        for row in verb.render(data, progress=progress, **given):
            if as_json and isinstance(row, Rejected):
                print_json(verb.rejected_json(row))
            elif isinstance(row, Rejected):
                out.print(f"row {row.row}: rejected: {row.reason}", style="yellow", markup=False)
            elif as_json:
                print_json(verb.as_json(*row))
            else:
                show_rendered(out, *row)
                shown += 1
    if shown:
        show_trained_legend(out)
