"""What all figures share: a matplotlib figure that carries its data, its style and its caption."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from eaft_probe.errors import BadInput, ProbeError, one_line
from eaft_probe.registry import Registry
from eaft_probe.scans.scan import Scan
from eaft_probe.storage.atomic import has_mark, require_replaceable, written_aside
from eaft_probe.view.labels import CAPTION_SIZE, FONT, TITLE_SIZE, names, shown, wrapped

COLUMN, PAGE, ACROSS = 3.4, 6.9, 3  # inches: a column, and both, of a paper; panels in a row
HEAD_SIZE, LAYOUT_DPI = 9, 100  # points; dots an inch
STYLE: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 7.5,
    "text.hinting": "none",  # with it text is up to 9 % wider at 150 dots an inch than at 100
    "axes.titlesize": TITLE_SIZE,
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
    note: str  # the caption, in one line
    height: float  # inches, with a caption of two lines
    laid_out = False

    def labelled(self, title: str | None = None, caption: bool = True) -> "Chart":
        """The same figure with a title above it, or without the caption below it."""
        width = self.get_figwidth() - 0.1
        if title:  # above the line that a figure of two scans has there
            lines = [*wrapped(shown(title), width, HEAD_SIZE), self.get_suptitle()]
            text = "\n".join(filter(None, lines))
            self.suptitle(text, x=0.01, ha="left", fontsize=HEAD_SIZE, parse_math=False)
        lines = wrapped(shown(self.note), 0.95 * width, CAPTION_SIZE) if caption else []
        style = {"fontsize": CAPTION_SIZE, "color": "#555555", "linespacing": 1.3}
        self.supxlabel("\n".join(lines), x=0.01, ha="left", parse_math=False, **style)
        above = 0.15 * self.get_suptitle().count("\n")  # inches a line
        self.set_figheight(self.height + 0.1 * (len(lines) - 2) + above)
        self.laid_out = False
        return self

    def draw(self, renderer: Any) -> None:
        """In the common style, whoever draws it."""
        with matplotlib.rc_context(STYLE):
            self.lay_out()
            super().draw(renderer)

    def lay_out(self) -> None:
        """Before it is drawn for the first time, and at one resolution: each drawing would move
        the axes a little, so that the bytes of a file depended on what was shown before."""
        if self.laid_out:
            return
        self.laid_out, dpi = True, self.get_dpi()
        self.set_dpi(LAYOUT_DPI)
        ConstrainedLayoutEngine().execute(self)
        self.set_dpi(dpi)

    def savefig(self, *arguments: Any, **settings: Any) -> None:
        """As matplotlib does; at 300 dots an inch, unless told otherwise."""
        with matplotlib.rc_context(STYLE):
            self.lay_out()
            super().savefig(*arguments, **settings)

    def _repr_png_(self) -> bytes:
        """How a notebook shows it, without pyplot."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Saves as the ending says: png, svg or pdf. Raises `ProbeError`, and `BadInput` for a
        file that is not an earlier figure, unless `overwrite`."""
        path, kind = Path(path), require_figure(Path(path), overwrite)
        with _saved(path) as temporary:
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
        chart.data, chart.is_table, chart.note, chart.height = data, is_table, note, height
        yield chart
        chart.set_layout_engine(None)  # from here on `lay_out` does it; "none" draws twice
        chart.labelled()


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


# --- axes ---


def rows_and_columns(count: int) -> tuple[int, int]:
    """Of so many panels, at most three in a row."""
    columns = min(count, ACROSS)
    return math.ceil(count / columns), columns


def width_of(columns: int) -> float:
    """Of a figure with so many panels in a row: each a column wide, if that fits the page."""
    return min(columns * COLUMN, PAGE)


def panels_of(chart: Chart, count: int, sharey: bool = False) -> list[Axes]:
    """So many panels, at most three in a row."""
    rows, columns = rows_and_columns(count)
    panels = list(chart.subplots(rows, columns, squeeze=False, sharey=sharey).ravel())
    for empty in panels[count:]:
        empty.remove()
    return panels[:count]


def legend(axes: Axes, labels: Sequence[str], **place: Any) -> None:
    """Labels for the lines of `axes` as they are, without mathematics."""
    for text in axes.legend(axes.lines, labels, **place).get_texts():
        text.set_parse_math(False)


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
