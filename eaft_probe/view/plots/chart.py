"""What all figures share: a matplotlib figure that carries its data, its style and its caption."""

import io
import textwrap
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

from eaft_probe.errors import BadInput, ProbeError, one_line
from eaft_probe.registry import Registry
from eaft_probe.scans.scan import Scan
from eaft_probe.storage.atomic import has_mark, require_replaceable, written_aside
from eaft_probe.storage.remote import name_of
from eaft_probe.text import printable
from eaft_probe.view.notices import counted_noun

COLUMN = 3.4  # inches: one column of a two-column paper
FONT = "DejaVu Sans"  # ships with matplotlib: the same figure everywhere
STYLE: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.hashsalt": "eaft-probe",  # the same ids, so the same file, on every run
}
# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CONFLICT = "#D55E00"
GROUP_COLOURS = {
    "conflict": CONFLICT,
    "low": "#E69F00",
    "high": "#0072B2",
    "agreeing": "#009E73",
    "all": "#555555",
}
# Light yellow to dark purple, as in arXiv 2601.02151, Fig. 3; the black end is left out.
YELLOW_PURPLE: Colormap = LinearSegmentedColormap.from_list(
    "yellow_purple", matplotlib.colormaps["magma_r"]([i / 255 * 0.82 for i in range(256)])
)
CAPTION_SIZE, CAPTION_CHARACTERS = 5.5, 22  # points, and how many characters an inch has then
LABEL = 2.6  # inches: beside the entropy axis of a panel one column wide
# By ending: what the file says about its origin, and how that is written there.
METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": "eaft-probe"},
    "svg": {"Creator": "eaft-probe", "Date": None},
    "pdf": {"Creator": "eaft-probe", "CreationDate": None},
}
MARKS = {
    "png": b"tEXtSoftware\0eaft-probe",
    "svg": b"<dc:title>eaft-probe</dc:title>",
    "pdf": b"/Creator (eaft-probe)",
}
FIGURES, TABLES = tuple(METADATA), ("parquet", "csv")  # endings
PLOTS = Registry[Callable[..., "Chart"]]("plot")
Plot = TypeVar("Plot", bound=Callable[..., "Chart"])


def plot(function: Plot) -> Plot:
    """Enters PLOTS under its own name: its arguments are scans, its keyword arguments flags."""
    PLOTS.add(function.__name__, function)
    return function


class Chart(Figure):
    """A matplotlib figure; `data` is the frame that it is drawn from."""

    data: pandas.DataFrame
    is_table: bool  # whether `data` is a table that fits a terminal

    def _repr_png_(self) -> bytes:
        """How a notebook shows it, without pyplot."""
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Saves as the ending says: png, svg or pdf. Raises `ProbeError`, and `BadInput` for a
        file that is not an earlier figure, unless `overwrite`."""
        path, kind = Path(path), require_figure(Path(path), overwrite)
        with matplotlib.rc_context(STYLE), _saved(path) as temporary:
            self.savefig(temporary, format=kind, metadata=METADATA[kind])

    def write_data(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Saves `data` as the ending says: parquet or csv. Raises `ProbeError`, and `BadInput`
        for a file that is not a table of the same columns, unless `overwrite`."""
        path, kind = Path(path), ending(path, TABLES, "--data")
        if not overwrite:
            columns = list(map(str, self.data.columns))
            require_replaceable(path, "table of this figure", lambda p: _columns(p) == columns)
        with _saved(path) as temporary:
            write = self.data.to_csv if kind == "csv" else self.data.to_parquet
            write(temporary, index=False)


def ending(path: str | Path, allowed: Sequence[str], flag: str) -> str:
    """The path's ending, one of those allowed. Raises `BadInput`."""
    suffix = Path(path).suffix[1:].lower()
    if suffix not in allowed:
        kinds = ", .".join(allowed[:-1]) + f" or .{allowed[-1]}"
        raise BadInput(f"{flag} takes a .{kinds} file, found {str(path)!r}")
    return suffix


def require_figure(path: Path, overwrite: bool) -> str:
    """The path's ending. Raises `BadInput` for a file that is not an earlier figure."""
    kind = ending(path, FIGURES, "--out")
    if not overwrite:
        require_replaceable(path, "figure", partial(has_mark, mark=MARKS[kind]))
    return kind


def _columns(path: Path) -> list[str]:
    """Of an existing table; none if the file is not one."""
    try:
        if path.suffix.lower() == ".csv":
            return list(pandas.read_csv(path, nrows=0).columns)
        return list(pq.read_schema(path.absolute()).names)
    except (ValueError, OSError, pa.ArrowException):  # pandas' and Unicode's are ValueErrors
        return []


@contextmanager
def _saved(path: Path) -> Iterator[Path]:
    try:
        with written_aside(path) as temporary:
            yield temporary
    except OSError as error:
        raise ProbeError(f"cannot write {path}: {error.strerror or one_line(error)}") from error


@contextmanager
def new_chart(
    width: float, height: float, data: pandas.DataFrame, note: str, is_table: bool = False
) -> Iterator[Chart]:
    """An empty chart, in inches, in the common style, with `note` as its caption below."""
    with matplotlib.rc_context(STYLE):
        chart = Chart(figsize=(width, height), layout="constrained")
        chart.data, chart.is_table = data, is_table
        yield chart
        lines = _wrapped(shown(note), 0.95 * (width - 0.1))
        chart.set_figheight(height + 0.1 * max(0, len(lines) - 6))  # inches: a line's
        chart.supxlabel(
            "\n".join(lines),
            x=0.01,
            ha="left",
            fontsize=CAPTION_SIZE,
            color="#555555",
            parse_math=False,
            linespacing=1.3,
        )
        # Laid out once: each drawing would move the axes a little, so that the bytes of a file
        # depended on how often the figure was shown before.
        chart.draw_without_rendering()
        chart.set_layout_engine("none")


# --- what figures of scans have in common ---


def open_scans(scans: Sequence["Scan | str | Path"]) -> list[Scan]:
    """The scans, opened if given as folders. Raises `BadInput` for one without tokens."""
    if not scans:
        raise BadInput("a figure needs at least one scan")
    opened = [s if isinstance(s, Scan) else Scan.open(s) for s in scans]
    for scan in opened:
        if not token_count(scan):
            raise BadInput(f"{scan.path} has no scored token to draw")
    return opened


def token_count(scan: Scan) -> int:
    return int(scan.manifest["counts"]["trained_tokens"])


def require_sample(scan: Scan, what: str) -> None:
    """Raises if the kept tokens do not represent all: conflicts alone, or none.
    Of a sample, `what` shows the part that was kept."""
    if scan.keep_tokens == "flagged":
        scan.require_all(what)
    if not scan.kept:
        raise BadInput(f"{scan.place} kept no token (--keep-tokens {scan.keep_tokens}) for {what}")


def by_scan(frames: Sequence[pandas.DataFrame], scans: Sequence[Scan]) -> pandas.DataFrame:
    """The frames one below the other, each with its scan's name in the column `scan`."""
    named = [f.assign(scan=name) for f, name in zip(frames, names(scans), strict=True)]
    return pandas.concat(named, ignore_index=True)


# --- words ---


def names(scans: Sequence[Scan]) -> list[str]:
    """What tells the scans apart: data and model, else the folders, else their numbers."""
    sources = [
        (Path(s.manifest["data"]["source"]).name, Path(s.manifest["model"]["name"]).name)
        for s in scans
    ]
    return distinct([", ".join(names) for names in sources], [name_of(s.place) for s in scans])


def distinct(*candidates: Sequence[str]) -> list[str]:
    """The first candidates that are told apart when drawn, else the last with their numbers.

    Each is one line that fits LABEL inches as a title.
    """
    for texts in candidates:
        labels = [_cut(" ".join(shown(text).split())) for text in texts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{i}: {label}" for i, label in enumerate(labels, 1)]


def _cut(line: str) -> str:
    if _inches(line, 8) <= LABEL:
        return line
    longer = bisect_right(range(len(line)), LABEL, key=lambda n: _inches(f"{line[:n]}…", 8))
    return f"{line[: longer - 1]}…"


def _inches(line: str, size: float) -> float:
    """The width of a line as it is drawn in so many points."""
    font = font_manager.FontProperties(family=FONT, size=size)
    width, _, _ = text_to_path.get_text_width_height_descent(line, font, ismath=False)
    return float(width) / 72


def _wrapped(text: str, width: float) -> list[str]:
    """In lines that fit so many inches as a caption."""
    for characters in range(int(width * CAPTION_CHARACTERS), 0, -1):
        lines = textwrap.wrap(text, characters)
        if max((_inches(line, CAPTION_SIZE) for line in lines), default=0) <= width:
            break
    return lines


def legend(axes: Axes, labels: Sequence[str]) -> None:
    """Labels for the lines of `axes` as they are, without mathematics."""
    for text in axes.legend(axes.lines, labels).get_texts():
        text.set_parse_math(False)


def caption(scans: Sequence[Scan], kept: bool = False) -> str:
    """Model, data, tokens and rule of each scan. `kept`: the figure shows the tokens that a scan
    has kept, rather than the sums of all."""
    sentences = [
        f"{s.manifest['data']['source']} under {s.manifest['model']['name']}, "
        f"{counted_noun(token_count(s), 'trained token')}{_kept(s, kept)}; conflict: {s.rule}"
        for s in scans
    ]
    return ". ".join(dict.fromkeys(sentences)) + "."


def _kept(scan: Scan, alone: bool) -> str:
    if scan.keeps_all:
        return ""
    source = f"drawn from the {scan.kept:,} kept" if alone else "drawn from the sums of all"
    return f" (--keep-tokens {scan.keep_tokens}; {source})"


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


def percent(share: float) -> str:
    """Two significant figures: 0.0169 → 1.7 %."""
    return f"{float(f'{100 * share:.2g}'):g} %"


# --- axes ---


def heat_map(
    axes: Axes, values: NDArray[Any], extent: tuple[float, float, float, float], **style: Any
) -> AxesImage:
    """Values of cells, the lowest row first; those that are NaN or masked stay blank."""
    return axes.imshow(
        np.ma.masked_invalid(values),
        origin="lower",
        extent=extent,
        aspect="auto",
        interpolation="none",
        **style,
    )


def no_axes(axes: Axes, text: str) -> None:
    """A panel that says why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, wrap=True)
