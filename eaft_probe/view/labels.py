"""What figures call scans, and text that their font can draw."""

import textwrap
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.textpath import text_to_path

from eaft_probe.quantities import counted_noun
from eaft_probe.scans.scan import Scan
from eaft_probe.storage.remote import HUB_ID, name_of
from eaft_probe.text import printable

FONT = "DejaVu Sans"  # ships with matplotlib: the same figure everywhere
TITLE_SIZE, CAPTION_SIZE = 8, 5.5  # points
TITLE_WIDTH, NARROW_TITLE = 2.6, 1.7  # inches: beside the axis of a panel 3.4 and 2.3 wide
CHARACTERS = 121  # that an inch has in type of one point, about
ENDINGS = (
    *(".gz", ".zst", ".bz2", ".xz"),
    *(".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt"),
)
SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval", "data"}


# --- scans ---


def names(scans: Sequence[Scan]) -> list[str]:
    """What tells the scans apart: data and model, else the folders, else their numbers.

    Each is one line that fits its panel as a title; see `chart.panel_width`.
    """
    sources = [f"{data_name(s)}, {model_name(s)}" for s in scans]
    width = TITLE_WIDTH if len(scans) < 3 else NARROW_TITLE
    return distinct(sources, [name_of(s.place) for s in scans], width=width)


def data_name(scan: Scan) -> str:
    """Without a path and endings; a split's name alone says little, so the scan's goes before."""
    source = name = _last_part(str(scan.manifest["data"]["source"]))
    while name.endswith(ENDINGS):
        name = name.rpartition(".")[0]
    if name in SPLITS:
        return f"{Path(name_of(scan.place)).name} ({name})"
    return name or source


def model_name(scan: Scan) -> str:
    return _last_part(str(scan.manifest["model"]["name"]))


def _last_part(source: str) -> str:
    """The last part of a path; a hub id stays."""
    return source if HUB_ID.fullmatch(source) else Path(source).name or source


def distinct(*candidates: Sequence[str], width: float = TITLE_WIDTH) -> list[str]:
    """The first candidates that are told apart when drawn as titles of so many inches, else the
    last with their numbers."""
    for texts in candidates:
        labels = [_cut(" ".join(shown(text).split()), width) for text in texts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{i}: {label}" for i, label in enumerate(labels, 1)]


def caption(scans: Sequence[Scan], kept: bool = False) -> str:
    """Data, model, tokens and rule of each scan; a rule that they share once. `kept`: the figure
    shows the tokens that a scan has kept, rather than the sums of all."""
    texts = [
        f"{data_name(s)} under {model_name(s)}, "
        f"{counted_noun(int(s.manifest['counts']['trained_tokens']), 'trained token')}"
        f"{_kept(s, kept)}"
        for s in scans
    ]
    rules = [f"conflict: {s.rule}." for s in scans]
    if len(set(rules)) > 1:
        return " ".join(f"{text}; {rule}" for text, rule in zip(texts, rules, strict=True))
    return f"{'; '.join(dict.fromkeys(texts))}; {rules[0]}"


def _kept(scan: Scan, alone: bool) -> str:
    if scan.keeps_all:
        return ""
    source = f"drawn from the {scan.kept:,} kept" if alone else "drawn from the sums of all"
    return f" (--keep-tokens {scan.keep_tokens}; {source})"


# --- text ---


def shown(text: str) -> str:
    """Text that the figures' font can draw: other characters are escaped as \\uXXXX.

    >>> shown("a\\u4e2d")
    'a\\\\u4e2d'
    """
    in_font = _characters()
    return "".join(
        c if ord(c) in in_font or c == "\n" else c.encode("unicode_escape").decode()
        for c in printable(text)
    )


@cache
def _characters() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(FONT)).get_charmap())


def wrapped(text: str, width: float, size: float) -> list[str]:
    """In lines that fit so many inches when drawn in so many points."""
    for characters in range(int(width * CHARACTERS / size), 0, -1):
        lines = textwrap.wrap(text, characters, break_on_hyphens=False)
        if max((_inches(line, size) for line in lines), default=0) <= width:
            break
    return lines


def _cut(line: str, width: float) -> str:
    if _inches(line, TITLE_SIZE) <= width:
        return line
    ends = range(len(line))
    longer = bisect_right(ends, width, key=lambda n: _inches(f"{line[:n]}…", TITLE_SIZE))
    return f"{line[: longer - 1]}…"


def _inches(line: str, size: float) -> float:
    """The width of a line as it is drawn in so many points."""
    font = font_manager.FontProperties(family=FONT, size=size)
    width, _, _ = text_to_path.get_text_width_height_descent(line, font, ismath=False)
    return float(width) / 72
