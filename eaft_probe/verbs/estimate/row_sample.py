"""What a large scan is estimated from: some of its rows, rendered as the scan would render them."""

import random
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eaft_probe.data.batches import windows
from eaft_probe.data.reading import Reader, Rejected
from eaft_probe.data.record import Record
from eaft_probe.data.rendering.rendered import Rendered
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
    yield from islice(units.selection.records(source, drawn), most)


class SampledRow(NamedTuple):
    """A row as it would be read; nothing but the record where it cannot be scored."""

    record: Record
    trained: int = 0  # tokens
    read: int = 0  # tokens of all of its windows
    text: bytes = b""  # that is written of it


def sampled_row(
    record: Record, reader: Reader[list[Rendered]], longest: int, stride: int
) -> SampledRow:
    """`longest`: tokens that the model reads at once."""
    result = reader(record)
    renderings = [] if isinstance(result, Rejected) else result[1]
    pieces = [w for r in renderings for w in windows(0, r, longest, stride)[0]]
    if not pieces:
        return SampledRow(record)
    texts = [text for r in renderings for text in (r.text, *(m.content for m in r.messages))]
    return SampledRow(
        record,
        sum(int(w.trained.sum()) for w in pieces),
        sum(len(w.ids) for w in pieces),
        "".join(texts).encode(errors="replace"),
    )
