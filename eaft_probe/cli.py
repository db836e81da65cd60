"""The command line: parse, call one verb, print. No logic.

Verbs are imported when they run, so that `--help` answers at once. The flags of a command are the
fields of its settings; see `settings.py`.
"""

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from importlib.metadata import version
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from rich.console import Console

from eaft_probe.errors import LONGEST, BadInput, ProbeError, one_line
from eaft_probe.settings import (
    CompareSettings,
    EstimateSettings,
    GradientSettings,
    MergeSettings,
    PlotSettings,
    ReportSettings,
    RolloutSettings,
    RuleSettings,
    ScanSettings,
    ShowSettings,
    TrainSettings,
    make_settings,
    read_config,
)

INTERRUPTED, GATE_TRIPPED = 130, 3
TABLE_LIBRARIES = ("duckdb", "_duckdb", "pyarrow")  # their errors mean parquet that is none
GATE = re.compile(r"\s*([\w.]+)\s*(<=|>=|<|>|==)\s*([-+.\deE]+)\s*")

app = typer.Typer(
    name="eaft-probe",
    help="See which tokens of a fine-tuning data set fight what the model already believes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)

Dir = Annotated[str, typer.Argument(metavar="DIR", help="a finished scan")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
FailIf = Annotated[
    str | None,
    typer.Option("--fail-if", help="exit 3 where this holds, e.g. 'conflict_share>0.03'"),
]
Data = Annotated[str | None, typer.Argument(metavar="DATA", help="default: the bundled demo")]
Config = Annotated[str | None, typer.Option("--config", help="YAML file with any of the flags")]


def _flags(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command one option for each field of `kind`; it receives those given as `given`."""
    hints = get_type_hints(kind)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "given"]

        def run(**values: Any) -> None:
            named = {p.name: values.pop(p.name) for p in own}
            given = {k: _parsed(hints[k], v, k) for k, v in values.items() if v not in (None, [])}
            command(**named, given=given)

        options = [_option(f, hints[f.name]) for f in fields(kind)]
        run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*own, *options]}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _option(setting: "Field[Any]", hint: Any) -> inspect.Parameter:
    """None, or an empty list, stands for "not given", so that --config can say it."""
    shown = setting.default if setting.default is not MISSING else None
    text = str(setting.metadata["help"]) + (
        f" [default: {shown}]" if shown not in (None, False) else ""
    )
    origin = get_origin(hint)
    several, mixed = origin in (dict, list), origin is UnionType or origin is Union
    kind = (
        list[str]
        if several
        else (str if mixed and type(None) not in get_args(hint) else hint | None)
    )
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, typer.Option(help=text, show_default=False)],
    )


def _parsed(hint: Any, value: Any, name: str) -> Any:
    """Lists and mappings are written with commas, repeated, or both."""
    origin = get_origin(hint)
    if origin not in (dict, list):
        return value
    items = [item.strip() for text in value for item in text.split(",") if item.strip()]
    if origin is list:
        return items
    if not all(item.count("=") == 1 for item in items):
        raise BadInput(f"--{name} takes ours=theirs,…, found {','.join(items)}")
    return dict(item.split("=") for item in items)


def _settled(given: Mapping[str, Any], config: str | None) -> dict[str, Any]:
    """The command line wins over the config file."""
    return {**(read_config(config) if config else {}), **given}


def _out() -> Console:
    return Console(highlight=False)


@contextmanager
def _progress(how_to_go_on: str) -> Iterator[Any]:
    """Shows long work on standard error; an interruption says how to go on."""
    from eaft_probe.view.terminal import TerminalProgress

    progress = TerminalProgress(Console(stderr=True))
    try:
        yield progress
    except KeyboardInterrupt:
        progress.stop()
        print(f"interrupted; {how_to_go_on}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        progress.stop()


@app.callback(invoke_without_command=True)
def _root(
    show: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if show:
        print(version("eaft-probe"))
        raise typer.Exit


@app.command()
@_flags(EstimateSettings)
def scan(
    given: dict[str, Any],
    data: Data = None,
    out: Annotated[str, typer.Option(help="the scan's folder")] = "eaft-scan",
    config: Config = None,
    as_json: Json = False,
    fail_if: FailIf = None,
) -> None:
    """Score every trained token of DATA under a model."""
    gate = _gate(fail_if)
    settings = _settled(given, config)
    if data is None:
        settings.setdefault("keep", ["topic", "planted", "planted_text"])
    if settings.get("dry_run"):
        _dry_run(data, settings, as_json, gate)
        return
    for name in EstimateSettings.only():
        if settings.pop(name, False) and name != "dry_run":
            raise BadInput(f"--{name.replace('_', '-')} says what to estimate by: give --dry-run")
    from eaft_probe.verbs.scan import scan as verb

    with _progress(f"the same command goes on from what {out} has") as progress:
        finished = verb(data, out, progress=progress, **settings)
    if os.environ.get("RANK", "0") == "0":  # once, however many processes were launched
        _show(finished, as_json, gate, worst=1)


def _dry_run(data: str | None, settings: Mapping[str, Any], as_json: bool, gate: Any) -> None:
    from eaft_probe.verbs.estimate import estimate

    with _progress("nothing was written") as progress:
        found = estimate(data, progress=progress, **settings)
    _tell(found.summary(), as_json, gate, lambda _: _out().print(str(found), markup=False))


@app.command()
@_flags(RolloutSettings)
def rollout(
    given: dict[str, Any],
    data: Data = None,
    out: Annotated[str, typer.Option(help="the answers, F.jsonl")] = "rollout.jsonl",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Sample a model's own answers to the prompts of DATA, ready to scan."""
    from eaft_probe.columns.summary import summarize
    from eaft_probe.verbs.rollout import rollout as verb

    with _progress(f"the same command goes on from what {out}.parts has") as progress:
        done = verb(data, out, progress=progress, **_settled(given, config))
    if as_json:
        scanned = {"scan": summarize(done.scan)} if done.scan else {}
        print(json.dumps(done.summary() | scanned, ensure_ascii=False))
        return
    print(done)
    if done.scan:
        _show(done.scan, False, None, worst=1)


@app.command()
@_flags(TrainSettings)
def train(
    given: dict[str, Any],
    data: Data = None,
    out: Annotated[str, typer.Option(help="the run's folder")] = "eaft-run",
    config: Config = None,
) -> None:
    """Fine-tune a model on DATA with a gated objective."""
    from eaft_probe.verbs.train import train as verb

    with _progress(f"--resume goes on from the last checkpoint in {out}") as progress:
        run = verb(data, out, progress=progress, **_settled(given, config))
    if os.environ.get("RANK", "0") == "0":  # one line, however many processes were launched
        print(f"{run}; the model and its log lie in {out}")


@app.command()
@_flags(RuleSettings)
def flag(given: dict[str, Any], folder: Dir, config: Config = None, as_json: Json = False) -> None:
    """Flag a finished scan by another rule, without the model."""
    from eaft_probe.columns.conflicts import ConflictRule
    from eaft_probe.columns.table import Scan

    wanted: RuleSettings = make_settings(RuleSettings, _settled(given, config))
    rule = ConflictRule.given(wanted.entropy_below, wanted.prob_below, wanted.quantile)
    _show(Scan.open(folder).flag(rule), as_json, None, worst=0)


@app.command()
@_flags(ShowSettings)
def show(
    given: dict[str, Any],
    folder: Dir,
    config: Config = None,
    as_json: Json = False,
    fail_if: FailIf = None,
) -> None:
    """Summary of a scan, its conflicts by group, and the worst examples."""
    wanted: ShowSettings = make_settings(ShowSettings, _settled(given, config))
    gate = _gate(fail_if)
    from eaft_probe.columns.table import Scan
    from eaft_probe.view.terminal import legend, show_example

    opened = Scan.open(folder, verify=wanted.verify)
    if wanted.export is not None:
        from eaft_probe.verbs.export import export as verb

        print(f"{verb(opened, wanted.export):,} rows in {wanted.export}", file=sys.stderr)
    if wanted.example is not None and (as_json or gate):
        raise BadInput("--example shows one example; --json and --fail-if speak of the whole scan")
    if wanted.example is not None:
        if not show_example(_out(), opened, wanted.example):
            raise BadInput(f"{folder} has no example {wanted.example}")
        _out().print(legend())
    elif wanted.export is None or as_json or gate:
        _show(opened, as_json, gate, wanted.worst)


def _show(opened: Any, as_json: bool, gate: Any, worst: int) -> None:
    """Prints a scan's summary; exit 3 where the gate is tripped."""
    from eaft_probe.columns.summary import summarize, worst_examples
    from eaft_probe.view.terminal import legend, show_example, show_summary

    def tell(summary: Mapping[str, Any]) -> None:
        show_summary(_out(), summary)
        for example in worst_examples(opened, worst):
            show_example(_out(), opened, example)
        if worst:
            _out().print(legend())

    _tell(summarize(opened), as_json, gate, tell)


def _tell(
    summary: Mapping[str, Any], as_json: bool, gate: Any, tell: Callable[[Mapping[str, Any]], None]
) -> None:
    """A summary as JSON or as `tell` prints it; exit 3 where the gate is tripped."""
    tripped = gate is not None and gate(summary)
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        tell(summary)
    if tripped:
        raise typer.Exit(GATE_TRIPPED)


def _gate(text: str | None) -> Callable[[Mapping[str, Any]], bool] | None:
    """--fail-if 'key>number' as a predicate on the JSON summary."""
    if text is None:
        return None
    found = GATE.fullmatch(text)
    try:
        limit = float(found[3]) if found else None
    except ValueError:
        limit = None
    if found is None or limit is None:
        raise BadInput(
            f"--fail-if takes a comparison such as 'conflict_share>0.03', found {text!r}"
        )
    name, sign = found[1], found[2]

    def tripped(summary: Mapping[str, Any]) -> bool:
        numbers = dict(_numbers(summary))
        if name not in numbers:
            outer = [k for k in numbers if k.count(".") == 0]
            inner = [k for k in numbers if k.count(".") == 2][:1]  # groups.conflict.tokens
            said = ", ".join([*outer, *(f"{k} and the like" for k in inner)])
            raise BadInput(f"--fail-if: no number {name!r}; there are {said}")
        value = numbers[name]
        return {
            "<": value < limit, "<=": value <= limit, ">": value > limit,
            ">=": value >= limit, "==": value == limit,
        }[sign]  # fmt: skip

    return tripped


def _numbers(summary: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Every number of the JSON with its key; inside an object, the keys joined by dots."""
    for key, value in summary.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{key}.")
        elif isinstance(value, int | float):
            yield f"{before}{key}", value


@app.command()
@_flags(CompareSettings)
def compare(
    given: dict[str, Any],
    first: Annotated[str, typer.Argument(metavar="A", help="a finished scan: the base model's")],
    second: Annotated[str, typer.Argument(metavar="B", help="a finished scan: the tuned model's")],
    config: Config = None,
    as_json: Json = False,
    fail_if: FailIf = None,
) -> None:
    """Compare two scans: token by token where the data are the same, else as distributions."""
    gate = _gate(fail_if)
    from eaft_probe.verbs.compare import compare as verb
    from eaft_probe.view.terminal import show_comparison

    found = verb(first, second, **_settled(given, config)).summary()
    _tell(found, as_json, gate, lambda summary: show_comparison(_out(), summary))


@app.command()
@_flags(MergeSettings)
def merge(
    given: dict[str, Any],
    folders: Annotated[list[str], typer.Argument(metavar="A B...", help="finished scans")],
    out: Annotated[str, typer.Option(help="the folder of the whole")] = "eaft-merged",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Join finished scans of disjoint data into one, without the model."""
    from eaft_probe.verbs.merge import merge as verb

    with _progress(f"the same command goes on from what {out} has") as progress:
        merged = verb(folders, out, progress=progress, **_settled(given, config))
    _show(merged, as_json, None, worst=0)


@app.command()
@_flags(GradientSettings)
def gradients(
    given: dict[str, Any], folder: Dir, config: Config = None, as_json: Json = False
) -> None:
    """Exact whole-model gradient norms of sampled tokens, beside the closed forms."""
    from eaft_probe.verbs.gradients import gradients as verb
    from eaft_probe.view.terminal import show_frame

    with _progress(f"the same command goes on from what {folder} has") as progress:
        found = verb(folder, progress=progress, **_settled(given, config))
    if as_json:
        print(json.dumps(found.summary(), ensure_ascii=False))
        return
    _out().print(str(found), markup=False)
    show_frame(_out(), found.agreement())


@app.command()
@_flags(ScanSettings)
def render(given: dict[str, Any], data: Data = None, config: Config = None) -> None:
    """The first 5 rows of DATA (--limit) with the trained tokens coloured; no forward pass."""
    from eaft_probe.verbs.render import render as verb
    from eaft_probe.view.terminal import TRAINED, coloured

    settings = _settled(given, config)
    if "sample" not in settings:
        settings.setdefault("limit", 5)
    console = _out()
    for row in verb(data, **settings):
        if row.rendered is None:
            console.print(f"row {row.row}: rejected: {row.reason}", style="yellow", markup=False)
            continue
        r = row.rendered
        trained, total = int(r.trained.sum()), len(r.ids)
        console.print(f"row {row.row}: {trained} of {total} tokens trained", style="bold")
        spans = [(int(a), int(b), TRAINED) for a, b in r.chars[r.trained]]
        console.print(coloured(r.text, spans))


@app.command()
@_flags(PlotSettings)
def plot(
    given: dict[str, Any],
    kind: Annotated[str, typer.Argument(metavar="KIND", help="see `eaft-probe list plots`")],
    folders: Annotated[list[str], typer.Argument(metavar="DIR...", help="finished scans, or runs")],
    out: Annotated[str | None, typer.Option(help="F.png, F.svg or F.pdf; KIND.png")] = None,
    data: Annotated[str | None, typer.Option(help="its data as F.parquet or F.csv")] = None,
    config: Config = None,
) -> None:
    """Draw a figure of finished scans, without the model."""
    from eaft_probe.view import plots
    from eaft_probe.view.terminal import show_frame

    wanted = make_settings(PlotSettings, _settled(given, config))
    out = out or f"{kind}.png"
    plots.require_endings(out, data)
    chart = plots.draw(kind, folders, {k: getattr(wanted, k) for k in _settled(given, config)})
    if kind in plots.TABLES:
        show_frame(_out(), chart.data.drop(columns=["scan"] if len(folders) == 1 else []))
    written = [(chart.write, out), *([(chart.write_data, data)] if data else [])]
    for write, path in written:
        write(path)
        print(path)


@app.command()
@_flags(ReportSettings)
def report(given: dict[str, Any], folder: Dir, config: Config = None) -> None:
    """Write a finished scan as one offline HTML page: its landscape to brush, its examples."""
    from eaft_probe.columns.table import Scan
    from eaft_probe.view.report import report as write

    wanted: ReportSettings = make_settings(ReportSettings, _settled(given, config))
    print(write(Scan.open(folder), wanted.out, wanted.against, **wanted.comparing()))


@app.command("list")
def list_entries(
    what: Annotated[str, typer.Argument(metavar="objectives|statistics|formats|plots")],
) -> None:
    """What there is: objectives, statistics, formats or plots."""
    from eaft_probe.view.lists import LISTS

    _out().print(LISTS[what]())


def main() -> None:
    """Runs the command line. The one place where errors become a line and an exit status."""
    sys.exit(_run(sys.argv[1:]))


def _require_once(arguments: list[str]) -> None:
    """Of `--objective sft --objective eaft` the parser would take the last without a word."""
    commands: Any = typer.main.get_command(app)
    command = commands.commands.get(arguments[0]) if arguments else None
    named = [a.split("=")[0].replace("_", "-") for a in arguments if a.startswith("--")]
    for option in command.params if command else ():
        single = option.param_type_name == "option" and not (option.multiple or option.is_flag)
        if single and sum(named.count(name) for name in option.opts) > 1:
            raise BadInput(f"{option.opts[0]} is given twice; it takes one value")


def _run(arguments: list[str]) -> int:
    try:
        _require_once(arguments)
        return int(app(arguments, standalone_mode=False) or 0)
    except ProbeError as error:
        return _complain(error, error.exit_status)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `eaft-probe show DIR | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if type(error).__module__.split(".")[0] in TABLE_LIBRARIES:
            return _complain(f"a file of the scan is damaged: {error}", BadInput.exit_status)
        status = getattr(error, "exit_code", None)
        if status is None:
            raise
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        return _complain(message, int(status)) if message else int(status)


def _complain(error: object, status: int) -> int:
    """One line, however many processes of a launch have the same complaint."""
    from eaft_probe.verbs.said import first_to_say

    line = f"eaft-probe: {one_line(Exception(error), LONGEST)}"
    if first_to_say(line):
        print(line, file=sys.stderr)
    return status
