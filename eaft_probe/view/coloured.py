"""Tokens of a rendering and of a scan on a terminal, each in its colour; conflicts also between
« and », for those who see none."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from eaft_probe.quantities import counted_noun, decimals, number, probability
from eaft_probe.scans.keys import named_place
from eaft_probe.scans.scan import Scan
from eaft_probe.text import printable
from eaft_probe.view.notices import left_out
from eaft_probe.view.terminal import print_line

if TYPE_CHECKING:
    from eaft_probe.data.rendering.rendered import Rendered

CONFLICT, TRAINED, UNTRAINED = "bold white on red", "black on bright_cyan", "dim"
# Label probability → colour of a trained token that is not a conflict.
SHADES = ((0.05, "black on yellow"), (0.5, "black on bright_white"))  # below this probability
LIKELY = "default"
Span = tuple[int, int, str]  # the first character, the one past the last, and their style


def show_rendered(console: Console, row: int, rendered: "Rendered") -> None:
    """A rendering with its trained tokens coloured, and what of the row it does not show."""
    trained, total = int(rendered.trained[1:].sum()), counted_noun(len(rendered.ids), "token")
    turn = "" if rendered.of_turn is None else f", turn {rendered.of_turn}"
    console.print(f"row {row}{turn}: {trained:,} of {total} trained", style="bold")
    if rendered.left_out:
        print_line(console, f"not shown: {left_out(rendered.left_out)}", "yellow")
    if rendered.not_read:
        print_line(console, f"columns not read: {', '.join(rendered.not_read)}", "yellow")
    spans = ((a, b, TRAINED) for a, b in rendered.chars[rendered.trained].tolist())
    marked = TRAINED if colourless(console) else None
    console.print(coloured(rendered.text, _joined(spans), marked))


def show_score(console: Console, name: str, value: float) -> None:
    """What ranks the example that follows."""
    print_line(console, f"{name} {number(value, 4)}", "bold")


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
    where = f"in {total}" if scan.keeps_all else f"among the {len(tokens):,} kept of {total}"
    print_line(
        console,
        f"{named_place(scan.example_key, place)} ({key}): "
        f"{counted_noun(sum(token[3] for token in tokens), 'conflict')} {where}, "
        f"mean nll {decimals(nll)} nats",
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
    console.print(coloured(text, spans, CONFLICT))
    for _, _, prob, conflict, token, top1, top1_prob, entropy in tokens:
        if conflict:
            print_line(
                console,
                f"  {token!r} p={probability(prob)}, the model expects {top1!r} "
                f"p={probability(top1_prob)}, {number(entropy, 2)} nats",
            )


def coloured(text: str, spans: Iterable[Span], marked: str | None = None) -> Text:
    """The text with each (start, end, style) in its colour and the rest dim. What has the style
    `marked` also stands between « and », for those who see no colour."""
    out, at = Text(), 0
    for start, end, style in spans:
        out.append(printable(text[at:start]), UNTRAINED)
        shown = printable(text[max(at, start) : end])
        out.append(f"«{shown}»" if shown and style == marked else shown, style)
        at = max(at, end)
    return out.append(printable(text[at:]), UNTRAINED)


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Neighbours of one style as one."""
    joined = list[Span]()
    for start, end, style in spans:
        if joined and joined[-1][2] == style and start <= joined[-1][1]:
            start, before, _ = joined.pop()
            end = max(end, before)
        joined.append((start, end, style))
    return joined


def colourless(console: Console) -> bool:
    """Whether colours would not show: in a file, or by the user's wish."""
    return console.no_color or console.color_system is None


LEGEND = {
    "«conflict»": CONFLICT,
    "p < 0.05": SHADES[0][1],
    "p < 0.5": SHADES[1][1],
    "likely": LIKELY,
    "not trained": UNTRAINED,
}


def show_legend(console: Console, scan: Scan) -> None:
    """What the colours and marks of `show_example` mean."""
    if colourless(console):
        console.print("«…»: a conflict")
        return
    console.print(_legend(LEGEND).append("" if scan.keeps_all else "or not kept ", UNTRAINED))


def show_trained_legend(console: Console) -> None:
    """What the colours and marks of `show_rendered` mean."""
    if colourless(console):
        console.print("«…»: trained")
        return
    console.print(_legend({"trained": TRAINED, "not trained": UNTRAINED}))


def _legend(styles: Mapping[str, str]) -> Text:
    return Text("  ").join(Text(f" {name} ", style) for name, style in styles.items())
