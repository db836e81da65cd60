"""What a large scan is estimated from: some of its rows, rendered as the scan would render them."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eaft_probe.data.batches import windows
from eaft_probe.data.formats import RowFormat
from eaft_probe.data.reading import Reader, Rejected
from eaft_probe.data.record import Record
from eaft_probe.data.rendering.render import Renderer
from eaft_probe.data.sources import Source
from eaft_probe.data.units import UnitPlan
from eaft_probe.settings import EstimateSettings


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> "Interval":
        return Interval(self.value * factor, self.low * factor, self.high * factor)


def total(values: NDArray[np.float64], rows: int) -> Interval:
    """The sum over `rows` rows from the values (n,) of those drawn at random, without return.

    The interval is the normal one, N · (mean ± 1.96 · s / √n · √(1 − n / N)), with no end below
    what the sample itself has. All rows drawn: no uncertainty.
    """
    n, value = len(values), rows * float(values.mean())
    spread = float(values.std(ddof=1)) if n > 1 else 0.0
    half = 1.96 * rows * spread / n**0.5 * max(0.0, 1 - n / rows) ** 0.5
    return Interval(value, max(value - half, float(values.sum())), value + half)


def drawn_rows(source: Source, units: UnitPlan, settings: EstimateSettings) -> Iterator[Record]:
    """`estimate_rows` of the rows to be scanned, at random."""
    among = range(units.rows) if units.drawn is None else sorted(units.drawn)
    most = min(settings.estimate_rows, units.rows)
    drawn = frozenset(random.Random(settings.seed).sample(among, most))
    left = most
    for record in units.selection.records(source, drawn):
        yield record
        left -= 1
        if not left:
            return


@dataclass
class RowSample:
    """Rows as they would be read, one entry a row in each list; zeros for one that cannot be."""

    renderer: Renderer
    row_format: RowFormat
    longest: int  # tokens
    stride: int
    trained: list[int] = field(default_factory=list)
    read_lengths: list[int] = field(default_factory=list)
    scorable: list[Record] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)
    rejected: int = 0

    def read(self, record: Record) -> None:
        found = Reader(self.row_format, self.renderer.renderings)(record)
        made, said = [], [""]
        for rendered in () if isinstance(found, Rejected) else found[1]:
            made += windows(len(self.trained), rendered, self.longest, self.stride)[0]
            said += [rendered.text, *(m.content for m in rendered.messages)]
        self.rejected += not made
        self.scorable += [record] if made else []
        self.trained.append(sum(int(w.trained.sum()) for w in made))
        self.read_lengths.append(sum(len(w.ids) for w in made))
        self.texts.append("".join(said).encode(errors="replace") if made else b"")

    @property
    def read_tokens(self) -> NDArray[np.float64]:
        """(n,) tokens of each row."""
        return np.array(self.read_lengths, np.float64)
