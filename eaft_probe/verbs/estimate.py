"""`scan --dry-run`: units, tokens, disk, hours and money of a scan, from a sample of its rows.

plan → tokenize rows drawn at random → multiply up, with the sampling's uncertainty → work from the
model's configuration → time at a rate of FLOP/s. Nothing is written, no weights are read. The
README has the model of costs, and what it was checked against.
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from eaft_probe.columns.statistics import chosen_statistics
from eaft_probe.columns.table import tokens_schema
from eaft_probe.data.batches import Cost, Window, shared_prefixes, windows
from eaft_probe.data.formats import RowFormat
from eaft_probe.data.render import Renderer
from eaft_probe.data.sources import Record, Source
from eaft_probe.data.units import UnitPlan
from eaft_probe.errors import BadInput, DataError, RowError
from eaft_probe.model.loading import resolve_device
from eaft_probe.model.shape import Shape, load_shape
from eaft_probe.progress import Progress, Silent
from eaft_probe.settings import EstimateSettings, make_settings
from eaft_probe.verbs.scan import data_format, open_data, selection

# Bytes of tokens/ a scored token: 31 under a vocabulary of 512, 35 under one of 49,152
# (benchmarks/scan_memory.py); each further number column takes some 3.5 of its 4.
TOKEN_BYTES, COLUMN_BYTES, COLUMNS = 35.0, 3.5, 18
# What a scan reaches of the rate of one large product, and what rendering, tokenizing and writing
# take a token that is read (benchmarks/cost_model.py). The README's runs under SmolLM2 on 2 cores
# (GSM8K 200 and 16 rows, tau-bench 16 and 2) reached 0.91, 0.76, 0.83 and 0.77 of 1.86e11 FLOP/s;
# stories260K, which hardly computes, took 20 µs a token. A GPU's have not been measured.
REACHED = {"cpu": 0.83}
HOST_SECONDS = 20e-6
PROBE = (2048, 1024, 4096)  # rows, inner and columns of that product: 0.2 s on 2 CPU cores


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> "Interval":
        return Interval(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a scan would take. The intervals are those of the sampling, at the rate that is said."""

    data: str
    model: str
    parameters: int
    rows: int
    units: int
    sampled_rows: int
    rejected_share: float  # of the sampled rows
    trained_tokens: Interval
    read_tokens: Interval
    disk_bytes: Interval
    flops: Interval  # of the forward passes, statistics not counted
    shared_prefix_share: float  # of the bodies' work that shared prefixes save, counted in `flops`
    rate: str  # what the time is computed from; or why there is none
    device_flops: float | None  # FLOP/s
    hours: Interval | None  # on all devices
    devices: int
    price: Interval | None  # of all devices

    def summary(self) -> dict[str, Any]:
        """What `--json` prints."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v._asdict() if isinstance(v, Interval) else v for k, v in found.items()}

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def estimate(data: Any = None, *, progress: Progress | None = None, **settings: Any) -> Estimate:
    """What a scan of `data` with these settings would take.

    Every argument is a field of `EstimateSettings` and a flag of `eaft-probe scan --dry-run`.
    Raises `BadInput` where the scan would for its data, its flags or its model.
    """
    chosen: EstimateSettings = make_settings(EstimateSettings, settings)
    progress = progress or Silent()
    source = open_data(data, chosen)
    row_format = data_format(source, chosen)
    progress.note(f"counting the rows of {source.name}")
    units = UnitPlan.of(source, selection(chosen), chosen.rows_per_unit)
    tokenizer, shape = _loaded(chosen.model, chosen)
    shapes = [shape, *([_loaded(chosen.reference, chosen)[1]] if chosen.reference else [])]
    renderer = Renderer(tokenizer, chosen.train_on, chosen.tool_calls)
    sample = _Sample(renderer, row_format, _longest(chosen, shape))
    for record in _drawn(source, units, chosen):
        sample.read(record)
    if not sum(sample.trained):
        raise DataError(f"none of the {len(sample.trained):,} rows looked at in {source.name} can "
                        f"be scored; `eaft-probe render` says why")  # fmt: skip
    return _estimated(sample, units, shapes, chosen)


# --- the sample ---


def _loaded(name: str, settings: EstimateSettings) -> tuple[Any, Shape]:
    return load_shape(
        name, revision=settings.revision, trust_remote_code=settings.trust_remote_code
    )


def _longest(settings: EstimateSettings, shape: Shape) -> int:
    longest = settings.max_length or shape.max_length
    if longest > shape.max_length:
        raise BadInput(f"--max-length {longest} is more than {settings.model} reads "
                       f"({shape.max_length} tokens)")  # fmt: skip
    return longest


def _drawn(source: Source, units: UnitPlan, settings: EstimateSettings) -> Iterator[Record]:
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
class _Sample:
    """Rows as they would be read, one entry a row in each list; zeros for one that cannot be."""

    renderer: Renderer
    row_format: RowFormat
    longest: int  # tokens
    trained: list[int] = field(default_factory=list)
    windows: list[list[Window]] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)
    rejected: int = 0

    def read(self, record: Record) -> None:
        try:
            rendered = self.renderer(self.row_format(record.parse()))
        except RowError:
            self._add([], b"")
            return
        made, _ = windows(len(self.trained), rendered, self.longest)
        said = [rendered.text, *(m.content for m in rendered.messages)]
        self._add(made, "".join(said).encode(errors="replace"))

    def _add(self, made: list[Window], text: bytes) -> None:
        self.rejected += not made
        self.trained.append(sum(int(w.trained.sum()) for w in made))
        self.windows.append(made)
        self.texts.append(text if made else b"")

    @property
    def read_tokens(self) -> NDArray[np.float64]:
        """(n,) tokens of each row."""
        return np.array([sum(len(w.ids) for w in made) for made in self.windows], np.float64)

    def flops(self, shape: Shape, saved: float) -> NDArray[np.float64]:
        """(n,) of a forward pass: 2 for each multiplication with its addition."""
        cost, trained = Cost(shape.linear, shape.attention), np.array(self.trained, np.float64)
        body = [sum(cost.whole(len(w.ids)) for w in made) for made in self.windows]
        flops: NDArray[np.float64] = 2 * (np.array(body) * (1 - saved) + shape.head * trained)
        return flops

    def saved(self, shape: Shape, rows: int) -> float:
        """The share of the body's work that shared prefixes save, were `rows` of them a unit."""
        cost, whole, shared = Cost(shape.linear, shape.attention), 0.0, 0.0
        for at in range(0, len(self.windows), rows):
            unit = [w for made in self.windows[at : at + rows] for w in made]
            whole += sum(cost.whole(len(w.ids)) for w in unit)
            for prefix, members in shared_prefixes(unit, cost):
                shared += cost.whole(prefix)
                shared += sum(cost.behind(prefix, len(w.ids)) if prefix else cost.whole(len(w.ids))
                              for w in members)  # fmt: skip
        return 1 - shared / whole if whole else 0.0


def total(values: NDArray[np.float64], rows: int) -> Interval:
    """The sum over `rows` rows from the values (n,) of those drawn at random, without return.

    The interval is the normal one, N · (mean ± 1.96 · s / √n · √(1 − n / N)), with no end below
    what the sample itself has. All rows drawn: no uncertainty.
    """
    n, value = len(values), rows * float(values.mean())
    spread = float(values.std(ddof=1)) if n > 1 else 0.0
    half = 1.96 * rows * spread / n**0.5 * max(0.0, 1 - n / rows) ** 0.5
    return Interval(value, max(value - half, float(values.sum())), value + half)


# --- the estimate ---


def _estimated(
    sample: _Sample, units: UnitPlan, shapes: Sequence[Shape], settings: EstimateSettings
) -> Estimate:
    trained, rows = np.array(sample.trained, np.float64), units.rows
    shares = all(s.shares_prefixes for s in shapes)
    saved = sample.saved(shapes[0], settings.rows_per_unit) if shares else 0.0
    flops = sum((sample.flops(s, saved) for s in shapes), np.zeros(len(trained)))
    rate, device_flops = _rate(settings)
    hours = None
    if settings.tokens_per_second:
        hours = total(trained, rows).times(1 / settings.tokens_per_second / 3600)
    elif device_flops:
        host = sample.read_tokens * HOST_SECONDS if settings.device_flops is None else 0.0
        hours = total(flops / device_flops + host, rows).times(1 / 3600)
    price = hours and settings.price_per_hour and hours.times(settings.price_per_hour)
    return Estimate(
        data=units.source.name, model=settings.model, parameters=shapes[0].parameters,
        rows=rows, units=units.count, sampled_rows=len(trained),
        rejected_share=sample.rejected / len(trained),
        trained_tokens=total(trained, rows), read_tokens=total(sample.read_tokens, rows),
        disk_bytes=total(trained * _token_bytes(settings) + _example_bytes(sample), rows),
        flops=total(flops, rows), shared_prefix_share=saved,
        rate=rate, device_flops=device_flops, devices=settings.devices,
        hours=hours and hours.times(1 / settings.devices), price=price or None,
    )  # fmt: skip


def _token_bytes(settings: EstimateSettings) -> float:
    statistics = chosen_statistics(settings.statistics, settings.reference is not None)
    return TOKEN_BYTES + COLUMN_BYTES * (len(tokens_schema(statistics)) - COLUMNS)


def _example_bytes(sample: _Sample) -> NDArray[np.float64]:
    """(n,) bytes of examples/: texts and messages, compressed as all of the sample together is."""
    lengths = np.array([len(text) for text in sample.texts], np.float64)
    packed = len(pa.compress(b"".join(sample.texts), "zstd", asbytes=True))
    made: NDArray[np.float64] = lengths * (packed / max(lengths.sum(), 1))
    return made


def _rate(settings: EstimateSettings) -> tuple[str, float | None]:
    """What the time is computed from, and FLOP/s where it is that."""
    if settings.tokens_per_second:
        return f"{settings.tokens_per_second:,.0f} scored tokens/s a device, as given", None
    if settings.device_flops:
        return f"{settings.device_flops:.3g} FLOP/s a device, as given", settings.device_flops
    device = resolve_device(settings.device)
    reached = REACHED.get(torch.device(device).type)
    if reached is None:
        said = f"no time: what a scan reaches on {device} has not been measured; give "
        return said + "--tokens-per-second, which a short scan shows, or --device-flops", None
    found = product_flops(device)
    return (f"{reached * found:.3g} FLOP/s, {reached:g} of what a product reaches here on {device}",
            reached * found)  # fmt: skip


def product_flops(device: str, rounds: int = 3) -> float:
    """FLOP/s of a large float32 product, the best of a few."""
    rows, inner, columns = PROBE
    a, b = (torch.ones(s, device=device) for s in ((rows, inner), (inner, columns)))
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * rows * inner * columns / best


# --- in words ---


def _lines(e: Estimate) -> Iterator[str]:
    looked = "all of them" if e.sampled_rows == e.rows else f"{e.sampled_rows:,} drawn at random"
    yield f"{e.data} under {e.model} ({e.parameters / 1e6:,.3g} million parameters)"
    yield (f"{e.rows:,} rows in {e.units:,} units; {looked} were tokenized, "
           f"{100 * e.rejected_share:.2g} % of those cannot be scored")  # fmt: skip
    yield f"scored tokens  {_told(e.trained_tokens)}"
    yield f"read tokens    {_told(e.read_tokens)}"
    yield f"disk, in MB    {_told(e.disk_bytes.times(1e-6), ',.3g')}"
    saved = f"; shared prefixes save {100 * e.shared_prefix_share:.0f} % of the bodies'"
    yield f"work, in FLOP  {_told(e.flops, '.3g')}{saved if e.shared_prefix_share else ''}"
    if e.hours is None:
        yield e.rate
        return
    many = f" on {e.devices:,} devices" if e.devices > 1 else ""
    yield f"time, in hours {_told(e.hours, ',.3g')}{many}, at {e.rate}; loading not counted"
    if e.price is not None:
        yield f"price          {_told(e.price, ',.2f')}"


def _told(value: Interval, write: str = ",.0f") -> str:
    ends = f" (95 %: {value.low:{write}} to {value.high:{write}})"
    return f"{value.value:{write}}" + (ends if value.low < value.high else "")
