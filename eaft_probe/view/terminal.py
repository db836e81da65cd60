"""Scans, tokens and progress on a terminal. Text of the data is shown, never obeyed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from eaft_probe.scans.keys import named_place
from eaft_probe.scans.scan import Scan
from eaft_probe.text import printable
from eaft_probe.view.notices import left_out, template_notices

if TYPE_CHECKING:
    import pandas

    from eaft_probe.data.rendering.rendered import Rendered

CONFLICT, TRAINED, UNTRAINED = "bold white on red", "black on bright_cyan", "dim"
# Label probability → colour of a trained token that is no conflict.
SHADES = ((0.05, "black on yellow"), (0.5, "black on bright_white"), (1.1, "default"))


# --- tables ---


def show_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """The numbers of a scan: headline, distributions, conflicts by pair, role and class."""
    share = 100 * summary["conflict_share"]
    console.print(
        f"{summary['conflicts']:,} of {summary['trained_tokens']:,} trained tokens ({share:.2f} %) "
        f"in {summary['examples_with_conflicts']:,} of {summary['examples']:,} examples are "
        f"confident conflicts",
        highlight=False,
    )
    console.print(
        f"{printable(summary['data'])} under {printable(summary['model'])}; "
        f"{summary['rule']['text']}",
        style="dim",
        markup=False,
        highlight=False,
    )
    lost = [f"{summary[k]:,} {v}" for k, v in LOST.items() if summary[k]]
    if lost:
        console.print("; ".join(lost), style="yellow", highlight=False)
    for notice in template_notices(summary):
        console.print(notice, style="yellow", markup=False, highlight=False)
    if "kept_tokens" in summary:
        console.print(_kept_tokens(summary["kept_tokens"]), style="yellow", highlight=False)
    console.print(
        f"mean nll {summary['mean_nll']:.3f} nats, mean entropy {summary['mean_entropy']:.3f} nats",
        highlight=False,
    )
    console.print(_distribution(summary))
    for title, rows in _groups(summary):
        if rows:
            console.print(_table(title, rows))


def _kept_tokens(kept: Mapping[str, Any]) -> str:
    said = (
        f"{kept['tokens']:,} tokens kept ({kept['keep']}); counts are of all, quantiles up to "
        f"{kept['quantiles_too_low']:.2%} low"
    )
    pairs = kept["pairs_too_low"]
    return said + (f", pairs up to {pairs:,} conflicts" if pairs else "")


LOST = {
    "rejected": "rows rejected, see rejected.jsonl",
    "cut_examples": "examples cut at --max-length",
}


def _distribution(summary: Mapping[str, Any]) -> Table:
    table = Table("quantile", *summary["entropy_quantiles"], title=None, box=None, pad_edge=False)
    for name in ("entropy", "prob"):
        table.add_row(name, *(f"{v:.4f}" for v in summary[f"{name}_quantiles"].values()))
    return table


def _groups(summary: Mapping[str, Any]) -> Iterable[tuple[str, Sequence[Mapping[str, Any]]]]:
    yield (
        "conflicts by label and what the model wanted",
        [{**p, "token": repr(p["token"]), "top1": repr(p["top1"])} for p in summary["pairs"]],
    )
    yield "by role", summary["roles"]
    yield "by class of token", summary["classes"]
    for name, rows in summary["kept"].items():
        yield f"examples by {printable(name)}", rows


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int) else "left")
    for row in rows:
        cells = [f"{v:,}" if isinstance(v, int) else printable(str(v)) for v in row.values()]
        table.add_row(*map(Text, cells))
    return table


def show_rendered(console: Console, row: int, rendered: "Rendered") -> None:
    """A rendering with its trained tokens coloured, and what of the row it does not show."""
    trained, total = int(rendered.trained[1:].sum()), len(rendered.ids)
    turn = "" if rendered.of_turn is None else f", turn {rendered.of_turn}"
    console.print(f"row {row}{turn}: {trained} of {total} tokens trained", style="bold")
    if rendered.left_out:
        console.print(f"not shown: {left_out(rendered.left_out)}", style="yellow", markup=False)
    spans = [(int(a), int(b), TRAINED) for a, b in rendered.chars[rendered.trained]]
    console.print(coloured(rendered.text, spans))


def show_frame(console: Console, frame: "pandas.DataFrame") -> None:
    """A small data frame as a table; numbers with four significant figures."""
    table = Table(box=None, pad_edge=False)
    for name in frame.columns:
        table.add_column(name, justify="left" if frame[name].dtype.kind in "OSTU" else "right")
    for row in frame.itertuples(index=False):
        table.add_row(*(Text(_cell(value)) for value in row))
    console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, str):
        return printable(value if value.strip() == value else repr(value))
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


# --- comparisons ---


def show_comparison(console: Console, summary: Mapping[str, Any]) -> None:
    """What `compare` found: which comparison it is, the headline, and a table."""
    _line(console, summary["said"], "bold")
    for side in ("a", "b"):
        said = summary[side]
        _line(
            console, f"{side.upper()}: {said['data']} under {said['model']}, {said['path']}", "dim"
        )
    for note in summary["notes"]:
        _line(console, note, "yellow")
    show = {"tokens": _show_moved, "distributions": _show_quantities}[summary["by"]]
    show(console, summary)


def _line(console: Console, text: str, style: str | None = None) -> None:
    console.print(printable(text), style=style, markup=False, highlight=False)


def _show_moved(console: Console, summary: Mapping[str, Any]) -> None:
    counts = (
        f"{summary[n]:,} {n} ({100 * summary[f'{n}_share']:.2f} %)"
        for n in ("learned", "unchanged", "forgotten")
    )
    _line(
        console,
        f"{summary['tokens']:,} tokens: {', '.join(counts)}; by more than "
        f"{summary['delta']:.3g} nats of log-probability, or within",
    )
    kinds = (f"{summary[f'conflicts_{n}']:,} {n}" for n in ("resolved", "remaining", "new"))
    _line(
        console,
        f"{summary['conflicts_a']:,} conflicts under A: {', '.join(kinds)}; "
        f"{summary['conflicts_b']:,} under B ({summary['rule']['text']})",
    )
    groups = summary["groups"]
    table = _numbers("group", "tokens", *MOVED)
    for name, row in groups.items():
        table.add_row(name, f"{row['tokens']:,}", *_moved(row))
    console.print(table)
    if "kl_reference" in summary:
        means = (f"{name} {_number(row['kl_reference'])}" for name, row in groups.items())
        reference = summary["reference"] or "the reference"
        _line(console, f"mean KL({reference} ‖ B) in nats: {', '.join(means)}")


MOVED = ("learned", "forgotten", "nll A", "B", "B − A", "entropy A", "B", "B − A")


def _numbers(first: str, *heads: str) -> Table:
    columns = (Column(head, justify="right") for head in heads)
    return Table(first, *columns, box=None, pad_edge=False, padding=(0, 1, 0, 0))


def _moved(row: Mapping[str, Any]) -> Iterable[str]:
    for name in ("learned", "forgotten"):
        yield _percent(row[f"{name}_share"])
    for name in ("nll", "entropy"):
        yield from (_number(row[f"mean_{name}_{side}"]) for side in ("a", "b"))
        yield _number(row[f"{name}_change"], "+")


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.3f}"


def _percent(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{100 * value:{sign}.2f} %"


def _show_quantities(console: Console, summary: Mapping[str, Any]) -> None:
    sizes = (
        f"{summary[f'examples_{s}']:,} examples, {summary[f'tokens_{s}']:,} tokens in {s.upper()}"
        for s in ("a", "b")
    )
    _line(console, "; ".join(sizes))
    conflicts = summary["quantities"]["conflict_share"]
    shares = " against ".join(_percent(conflicts[s]) for s in ("a", "b"))
    _line(
        console,
        f"confident conflicts ({summary['rule']['text']}): {shares} of the tokens, "
        f"{_number(conflicts['ratio'])} times as frequent in A as in B (95 %: "
        f"{_interval(conflicts, 'ratio')})",
    )
    table = _numbers("", "A", "B", "A − B", "95 %", "A / B", "95 %")
    for name, row in summary["quantities"].items():
        write = _percent if name.endswith("_share") else _number
        ends = _interval(row, "difference", "+", write)
        table.add_row(
            name,
            write(row["a"]),
            write(row["b"]),
            write(row["difference"], "+"),
            ends,
            _number(row["ratio"]),
            _interval(row, "ratio"),
        )
    console.print(table)


def _interval(
    row: Mapping[str, Any],
    name: str,
    sign: str = "",
    write: Callable[[float | None, str], str] = _number,
) -> str:
    low, high = (row[f"{name}_{end}"] for end in ("low", "high"))
    if low is None:
        return "–"
    # JSON has no infinity: an end that is none lies there.
    return f"{write(low, sign).removesuffix(' %')} to {'∞' if high is None else write(high, sign)}"


# --- coloured tokens ---


def show_example(console: Console, scan: Scan, example: int) -> bool:
    """One example with its trained tokens coloured and its conflicts listed; False if not there.
    Where each turn is an example of its own: all turns of that row, one after the other."""
    key = ", ".join(scan.example_key)
    found = scan.rows(
        f"SELECT ({key},), coalesce(text, ''), coalesce(key, ''), coalesce(mean_nll, 'NaN'), "
        f"trained_tokens FROM examples WHERE example = ? ORDER BY {key}",
        [example],
    )
    for place, *rest in found:
        _show_rendering(console, scan, place, *rest)
    return bool(found)


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
    flagged = [t for t in tokens if t[3]]
    of = "in" if scan.keeps_all else f"among {len(tokens)} kept of"
    named = f"{named_place(scan.example_key, place)} ({printable(key)})"
    title = f"{named}: {len(flagged)} conflicts {of} {trained} tokens, mean nll {nll:.3f} nats"
    console.print(title, style="bold", markup=False, highlight=False)
    styles = [(t[0], t[1], CONFLICT if t[3] else _shade(t[2])) for t in tokens]
    console.print(coloured(text, styles))
    for _, _, prob, _, token, top1, top1_prob, entropy in flagged:
        line = (
            f"  {token!r} p={prob:.2g}, the model: {top1!r} p={top1_prob:.2g}, {entropy:.2f} nats"
        )
        console.print(printable(line), markup=False, highlight=False)


def _shade(prob: float) -> str:
    return next((style for limit, style in SHADES if prob < limit), SHADES[-1][1])


def coloured(text: str, spans: Iterable[tuple[int, int, str]]) -> Text:
    """The text with each (start, end, style) in its colour and the rest dim."""
    out, at = Text(), 0
    for start, end, style in spans:
        out.append(printable(text[at:start]), UNTRAINED)
        out.append(printable(text[max(at, start) : end]), style)
        at = max(at, end)
    return out.append(printable(text[at:]), UNTRAINED)


LEGEND = (
    ("conflict", CONFLICT),
    ("p < 0.05", SHADES[0][1]),
    ("p < 0.5", SHADES[1][1]),
    ("likely", SHADES[2][1]),
    ("not trained", UNTRAINED),
)


def legend(scan: Scan) -> Text:
    """What the colours of `show_example` mean."""
    more = "" if scan.keeps_all else "or not kept "  # the last is of the tokens not trained
    return (
        Text("  ").join(Text(f" {name} ", style) for name, style in LEGEND).append(more, UNTRAINED)
    )


# --- progress ---
