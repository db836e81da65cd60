"""Scans, tokens and comparisons on a terminal. Text of the data is shown, never obeyed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from eaft_probe.scans.keys import named_place
from eaft_probe.scans.scan import Scan
from eaft_probe.text import printable
from eaft_probe.view.notices import counted_noun, left_out, rejections, template_notices

if TYPE_CHECKING:
    from eaft_probe.data.rendering.rendered import Rendered

Summary = Mapping[str, Any]  # what `--json` prints
CONFLICT, TRAINED, UNTRAINED = "bold white on red", "black on bright_cyan", "dim"
# Label probability → colour of a trained token that is not a conflict.
SHADES = ((0.05, "black on yellow"), (0.5, "black on bright_white"))  # below this probability
LIKELY = "default"


def _line(console: Console, text: str, style: str | None = None) -> None:
    console.print(printable(text), style=style, markup=False, highlight=False)


# --- a scan ---


def show_summary(console: Console, summary: Summary) -> None:
    """The numbers of a scan: headline, distributions, conflicts by pair, role and class."""
    verb = "is a confident conflict" if summary["conflicts"] == 1 else "are confident conflicts"
    _line(
        console,
        f"{summary['conflicts']:,} of {counted_noun(summary['trained_tokens'], 'trained token')} "
        f"({100 * summary['conflict_share']:.2f} %) in {summary['examples_with_conflicts']:,} of "
        f"{counted_noun(summary['examples'], 'example')} {verb}",
    )
    _line(console, f"{summary['data']} under {summary['model']}; {summary['rule']['text']}", "dim")
    for notice in (*_lost(summary), *template_notices(summary)):
        _line(console, notice, "yellow")
    nll, entropy = summary["mean_nll"], summary["mean_entropy"]
    _line(console, f"mean nll {nll:.3f} nats, mean entropy {entropy:.3f} nats")
    console.print(_quantiles(summary))
    pairs = [{**p, "token": repr(p["token"]), "top1": repr(p["top1"])} for p in summary["pairs"]]
    tables = {
        "conflicts by label and what the model wanted": pairs,
        "by role": summary["roles"],
        "by class of token": summary["classes"],
        **{f"examples by {printable(name)}": rows for name, rows in summary["kept"].items()},
    }
    for title, rows in tables.items():
        if rows:
            show_frame(console, pandas.DataFrame(rows), title)


def _lost(summary: Summary) -> Iterable[str]:
    if rejected := summary["rejected"]:
        yield f"{counted_noun(rejected, 'row')} rejected, see rejected.jsonl"
        yield from (f"  {reason}" for reason in rejections(summary))
    if cut := summary["cut_examples"]:
        yield f"{counted_noun(cut, 'example')} cut at --max-length"
    if kept := summary.get("kept_tokens"):
        pairs = kept["pairs_too_low"]
        yield (
            f"{counted_noun(kept['tokens'], 'token')} kept ({kept['keep']}); counts include all, "
            f"quantiles are up to {kept['quantiles_too_low']:.2%} too low"
            + (f", pairs up to {counted_noun(pairs, 'conflict')}" if pairs else "")
        )


def _quantiles(summary: Summary) -> Table:
    table = Table("quantile", *summary["entropy_quantiles"], box=None, pad_edge=False)
    for name in ("entropy", "prob"):
        table.add_row(name, *(f"{v:.4f}" for v in summary[f"{name}_quantiles"].values()))
    return table


def show_frame(console: Console, frame: pandas.DataFrame, title: str | None = None) -> None:
    """A small data frame as a table; numbers with four significant figures."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in frame.columns:
        table.add_column(name, justify="left" if frame[name].dtype.kind in "OSTU" else "right")
    for row in frame.itertuples(index=False):
        table.add_row(*(Text(_cell(value)) for value in row))
    console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, str):
        return printable(value if value.strip() == value else repr(value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


# --- comparisons ---


def show_comparison(console: Console, summary: Summary) -> None:
    """What `compare` found: which comparison it is, the headline, and a table."""
    _line(console, summary["said"], "bold")
    for side in ("a", "b"):
        scan = summary[side]
        text = f"{side.upper()}: {scan['data']} under {scan['model']}, {scan['path']}"
        _line(console, text, "dim")
    for note in summary["notes"]:
        _line(console, note, "yellow")
    show = {"tokens": _show_tokens, "distributions": _show_distributions}[summary["by"]]
    show(console, summary)


def _show_tokens(console: Console, summary: Summary) -> None:
    counts = (
        f"{summary[n]:,} {n} ({100 * summary[f'{n}_share']:.2f} %)"
        for n in ("learned", "unchanged", "forgotten")
    )
    _line(
        console,
        f"{counted_noun(summary['tokens'], 'token')}: {', '.join(counts)}; learned and forgotten: "
        f"more than {summary['delta']:.3g} nats of log-probability up and down",
    )
    kinds = (f"{summary[f'conflicts_{n}']:,} {n}" for n in ("resolved", "remaining", "new"))
    _line(
        console,
        f"{counted_noun(summary['conflicts_a'], 'conflict')} under A: {', '.join(kinds)}; "
        f"{summary['conflicts_b']:,} under B ({summary['rule']['text']})",
    )
    rows = ((name, f"{row['tokens']:,}", *_moved(row)) for name, row in summary["groups"].items())
    console.print(_numbers(("group", "tokens", *MOVED), rows))
    if "kl_reference" in summary:
        means = (
            f"{name} {_number(row['kl_reference'])}" for name, row in summary["groups"].items()
        )
        reference = summary["reference"] or "the reference"
        _line(console, f"mean KL({reference} ‖ B) in nats: {', '.join(means)}")


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
        yield _percent(row[f"{name}_share"])
    for name in ("nll", "entropy"):
        yield from (_number(row[f"mean_{name}_{side}"]) for side in ("a", "b"))
        yield _number(row[f"{name}_change"], "+")


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.3f}"


def _percent(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{100 * value:{sign}.2f} %"


def _show_distributions(console: Console, summary: Summary) -> None:
    sizes = (
        f"{counted_noun(summary[f'examples_{s}'], 'example')}, "
        f"{counted_noun(summary[f'tokens_{s}'], 'token')} in {s.upper()}"
        for s in ("a", "b")
    )
    _line(console, "; ".join(sizes))
    conflicts = summary["quantities"]["conflict_share"]
    _line(
        console,
        f"confident conflicts ({summary['rule']['text']}): {_percent(conflicts['a'])} against "
        f"{_percent(conflicts['b'])} of the tokens, {_number(conflicts['ratio'])} times as "
        f"frequent in A as in B (95 %: {_interval(conflicts, 'ratio')})",
    )
    names = ("", "A", "B", "A − B", "95 %", "A / B", "95 %")
    rows = ((name, *_compared(name, row)) for name, row in summary["quantities"].items())
    console.print(_numbers(names, rows))


def _compared(name: str, row: Summary) -> Iterable[str]:
    write = _percent if name.endswith("_share") else _number
    yield from (write(row["a"]), write(row["b"]), write(row["difference"], "+"))
    yield _interval(row, "difference", "+", write)
    yield from (_number(row["ratio"]), _interval(row, "ratio"))


def _interval(
    row: Summary,
    name: str,
    sign: str = "",
    write: Callable[[float | None, str], str] = _number,
) -> str:
    low, high = (row[f"{name}_{end}"] for end in ("low", "high"))
    if low is None:
        return "–"
    # JSON has no infinity: a missing end lies there.
    return f"{write(low, sign).removesuffix(' %')} to {'∞' if high is None else write(high, sign)}"


# --- coloured tokens ---


def show_rendered(console: Console, row: int, rendered: "Rendered") -> None:
    """A rendering with its trained tokens coloured, and what of the row it does not show."""
    trained, total = int(rendered.trained[1:].sum()), counted_noun(len(rendered.ids), "token")
    turn = "" if rendered.of_turn is None else f", turn {rendered.of_turn}"
    console.print(f"row {row}{turn}: {trained} of {total} trained", style="bold")
    if rendered.left_out:
        _line(console, f"not shown: {left_out(rendered.left_out)}", "yellow")
    if rendered.not_read:
        _line(console, f"columns not read: {', '.join(rendered.not_read)}", "yellow")
    spans = rendered.chars[rendered.trained].tolist()
    console.print(coloured(rendered.text, ((a, b, TRAINED) for a, b in spans)))


def show_score(console: Console, name: str, value: float) -> None:
    """What ranks the example that follows."""
    _line(console, f"{name} {value:.4g}", "bold")


def show_example(console: Console, scan: Scan, example: int) -> bool:
    """One example with its trained tokens coloured and its conflicts listed; False if not there.
    If each turn is an example of its own: all turns of that row, one after the other."""
    key = ", ".join(scan.example_key)
    renderings = scan.rows(
        f"SELECT ({key},), coalesce(text, ''), coalesce(key, ''), coalesce(mean_nll, 'NaN'), "
        f"trained_tokens FROM examples WHERE example = ? ORDER BY {key}",
        [example],
    )
    for rendering in renderings:
        _show_rendering(console, scan, *rendering)
    return bool(renderings)


def _show_rendering(
    console: Console,
    scan: Scan,
    place: tuple[int, ...],
    text: str,
    key: str,
    nll: float,
    trained: int,
) -> None:
    tokens = scan.rows(
        f"SELECT coalesce(char_start, 0), coalesce(char_end, 0), coalesce(prob, 'NaN'), "
        f"coalesce(conflict, false), token, top1, top1_prob, entropy FROM tokens "
        f"WHERE {' AND '.join(f'{name} = ?' for name in scan.example_key)} ORDER BY position",
        place,
    )
    total = counted_noun(trained, "token")
    where = f"in {total}" if scan.keeps_all else f"among the {len(tokens)} kept of {total}"
    _line(
        console,
        f"{named_place(scan.example_key, place)} ({key}): "
        f"{counted_noun(sum(token[3] for token in tokens), 'conflict')} {where}, "
        f"mean nll {nll:.3f} nats",
        "bold",
    )
    spans = (
        (
            start,
            end,
            CONFLICT if conflict else next((s for limit, s in SHADES if prob < limit), LIKELY),
        )
        for start, end, prob, conflict, *_ in tokens
    )
    console.print(coloured(text, spans))
    for _, _, prob, conflict, token, top1, top1_prob, entropy in tokens:
        if conflict:
            model = f"the model: {top1!r} p={top1_prob:.2g}, {entropy:.2f} nats"
            _line(console, f"  {token!r} p={prob:.2g}, {model}")


def coloured(text: str, spans: Iterable[tuple[int, int, str]]) -> Text:
    """The text with each (start, end, style) in its colour and the rest dim."""
    out, at = Text(), 0
    for start, end, style in spans:
        out.append(printable(text[at:start]), UNTRAINED)
        out.append(printable(text[max(at, start) : end]), style)
        at = max(at, end)
    return out.append(printable(text[at:]), UNTRAINED)


LEGEND = {
    "conflict": CONFLICT,
    "p < 0.05": SHADES[0][1],
    "p < 0.5": SHADES[1][1],
    "likely": LIKELY,
    "not trained": UNTRAINED,
}


def legend(scan: Scan) -> Text:
    """What the colours of `show_example` mean."""
    line = Text("  ").join(Text(f" {name} ", style) for name, style in LEGEND.items())
    return line.append("" if scan.keeps_all else "or not kept ", UNTRAINED)
