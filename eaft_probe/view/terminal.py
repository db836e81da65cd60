"""Numbers of scans and comparisons on a terminal. Text of the data is shown, never obeyed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from eaft_probe.quantities import counted_noun, decimals, number, percent
from eaft_probe.scans.rejections import reason_lines
from eaft_probe.text import printable
from eaft_probe.view.notices import template_notices

Summary = Mapping[str, Any]  # what `--json` prints


def print_line(console: Console, text: str, style: str | None = None) -> None:
    console.print(printable(text), style=style, markup=False, highlight=False)


# --- a scan ---


def show_summary(console: Console, summary: Summary) -> None:
    """The numbers of a scan: headline, distributions, conflicts by pair, role and class."""
    verb = "is a confident conflict" if summary["conflicts"] == 1 else "are confident conflicts"
    print_line(
        console,
        f"{summary['conflicts']:,} of {counted_noun(summary['trained_tokens'], 'trained token')} "
        f"({percent(summary['conflict_share'])}) in {summary['examples_with_conflicts']:,} of "
        f"{counted_noun(summary['examples'], 'example')} {verb}",
    )
    print_line(
        console,
        f"{summary['data']} under {summary['model']}; conflict: {summary['rule']['text']}",
        "dim",
    )
    for notice in (*_lost(summary), *template_notices(summary)):
        print_line(console, notice, "yellow")
    nll, entropy = summary["mean_nll"], summary["mean_entropy"]
    print_line(console, f"mean nll {decimals(nll)} nats, mean entropy {decimals(entropy)} nats")
    console.print(_quantiles(summary))
    pairs = [
        {"label": repr(p["token"]), "model expects": repr(p["top1"]), "conflicts": p["conflicts"]}
        for p in summary["pairs"]
    ]
    tables = {
        "Conflicts by label and what the model expects": pairs,
        "By role": summary["roles"],
        "By class of token": summary["classes"],
        **{f"Examples by {printable(name)}": rows for name, rows in summary["kept"].items()},
    }
    for title, rows in tables.items():
        if rows:
            show_frame(console, pandas.DataFrame(rows), title)


def _lost(summary: Summary) -> Iterable[str]:
    if rejected := summary["rejected"]:
        yield f"{counted_noun(rejected, 'row')} rejected, see rejected.jsonl"
        yield from (f"  {reason}" for reason in reason_lines(summary["rejected_reasons"]))
    if cut := summary["cut_examples"]:
        yield f"{counted_noun(cut, 'example')} cut at --max-length"
    if kept := summary.get("kept_tokens"):
        pairs = kept["pairs_too_low"]
        yield (
            f"{counted_noun(kept['tokens'], 'token')} kept ({kept['keep']}); counts include all, "
            f"quantiles are up to {percent(kept['quantiles_too_low'])} too low"
            + (f", pairs up to {counted_noun(pairs, 'conflict')}" if pairs else "")
        )


def _quantiles(summary: Summary) -> Table:
    table = Table("quantile", *summary["entropy_quantiles"], box=None, pad_edge=False)
    for name in ("entropy", "prob"):
        table.add_row(name, *map(number, summary[f"{name}_quantiles"].values()))
    return table


def show_frame(console: Console, frame: pandas.DataFrame, title: str | None = None) -> None:
    """A small data frame as a table under its title; numbers with four significant figures."""
    if title is not None:
        print_line(console, f"\n{title}", "bold")
    table = Table(box=None, pad_edge=False)
    for name in frame.columns:
        right = frame[name].dtype.kind not in "OSTU"
        table.add_column(name.replace("_", " "), justify="right" if right else "left")
    for row in frame.itertuples(index=False):
        table.add_row(*(Text(_cell(value)) for value in row))
    console.print(table)


def show_objectives(console: Console, frame: pandas.DataFrame, names: Sequence[str]) -> None:
    """A row for each objective; the notes below, else the numbers have no room in a terminal."""
    show_frame(console, frame[["objective", *names]])
    for note, rows in frame[frame["note"] != ""].groupby("note", sort=False):
        print_line(console, f"{', '.join(rows['objective'])}: {note}", "dim")


def _cell(value: object) -> str:
    if isinstance(value, str):
        return printable(value if value.strip() == value else repr(value))
    if isinstance(value, float):
        return number(value, 4)
    return f"{value:,}" if isinstance(value, int) else str(value)


# --- comparisons ---


def show_comparison(console: Console, summary: Summary) -> None:
    """What `compare` found: which comparison it is, the headline, and a table."""
    print_line(console, f"A and B are scans of {summary['said']}.", "bold")
    for side in ("a", "b"):
        scan = summary[side]
        text = f"{side.upper()}: {scan['data']} under {scan['model']}, {scan['path']}"
        print_line(console, text, "dim")
    for note in summary["notes"]:
        print_line(console, note, "yellow")
    show = {"tokens": _show_tokens, "distributions": _show_distributions}[summary["by"]]
    show(console, summary)


def _show_tokens(console: Console, summary: Summary) -> None:
    counts = (
        f"{summary[n]:,} {n} ({percent(summary[f'{n}_share'])})"
        for n in ("learned", "unchanged", "forgotten")
    )
    print_line(
        console,
        f"{counted_noun(summary['tokens'], 'token')}: {', '.join(counts)}; learned and forgotten: "
        f"more than {summary['delta']:.3g} nats of log-probability up and down",
    )
    kinds = (f"{summary[f'conflicts_{n}']:,} {n}" for n in ("resolved", "remaining", "new"))
    print_line(
        console,
        f"{counted_noun(summary['conflicts_a'], 'conflict')} under A: {', '.join(kinds)}; "
        f"{summary['conflicts_b']:,} under B ({summary['rule']['text']})",
    )
    rows = ((name, f"{row['tokens']:,}", *_moved(row)) for name, row in summary["groups"].items())
    console.print(_numbers(("group", "tokens", *MOVED), rows))
    if "kl_reference" in summary:
        means = (
            f"{name} {decimals(row['kl_reference'])}" for name, row in summary["groups"].items()
        )
        reference = summary["reference"] or "the reference"
        print_line(console, f"mean KL({reference} ‖ B) in nats: {', '.join(means)}")


MOVED = ("learned", "forgotten", "nll A", "B", "B − A", "entropy A", "B", "B − A")


def _numbers(names: Sequence[str], rows: Iterable[Iterable[str]]) -> Table:
    """A table whose columns but the first are numbers."""
    columns = (Column(name, justify="right" if i else "left") for i, name in enumerate(names))
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table


def _moved(row: Summary) -> Iterable[str]:
    for name in ("learned", "forgotten"):
        yield percent(row[f"{name}_share"])
    for name in ("nll", "entropy"):
        yield from (decimals(row[f"mean_{name}_{side}"]) for side in ("a", "b"))
        yield decimals(row[f"{name}_change"], "+")


def _show_distributions(console: Console, summary: Summary) -> None:
    sizes = (
        f"{counted_noun(summary[f'examples_{s}'], 'example')}, "
        f"{counted_noun(summary[f'tokens_{s}'], 'token')} in {s.upper()}"
        for s in ("a", "b")
    )
    print_line(console, "; ".join(sizes))
    conflicts = summary["quantities"]["conflict_share"]
    times = (
        f", {decimals(conflicts['ratio'])} times as frequent in A as in B"
        if conflicts["ratio"] is not None
        else ""
    )
    within = (
        f" (95 %: {_interval(conflicts, 'ratio')})" if conflicts["ratio_low"] is not None else ""
    )
    print_line(
        console,
        f"confident conflicts ({summary['rule']['text']}): {percent(conflicts['a'])} against "
        f"{percent(conflicts['b'])} of the tokens{times}{within}",
    )
    names = ("", "A", "B", "A − B", "95 %", "A / B", "95 %")
    rows = ((name, *_compared(name, row)) for name, row in summary["quantities"].items())
    console.print(_numbers(names, rows))


def _compared(name: str, row: Summary) -> Iterable[str]:
    write = percent if name.endswith("_share") else decimals
    yield from (write(row["a"]), write(row["b"]), write(row["difference"], "+"))
    yield _interval(row, "difference", "+", write)
    yield from (decimals(row["ratio"]), _interval(row, "ratio"))


def _interval(
    row: Summary,
    name: str,
    sign: str = "",
    write: Callable[[float | None, str], str] = decimals,
) -> str:
    low, high = (row[f"{name}_{end}"] for end in ("low", "high"))
    if low is None:
        return "–"
    # JSON has no infinity: a missing end lies there.
    return f"{write(low, sign).removesuffix(' %')} to {'∞' if high is None else write(high, sign)}"
