"""`scan --dry-run`: units, tokens, disk, hours and money of a scan, from a sample of its rows.

plan → tokenize rows drawn at random → multiply up, with the sampling's uncertainty → work from the
model's configuration → time at a rate of FLOP/s. Nothing is written, no weights are read. The
README has the model of costs, and what it was checked against.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eaft_probe.data.render import Renderer, RenderOptions
from eaft_probe.data.units import UnitPlan
from eaft_probe.errors import BadInput, DataError
from eaft_probe.model.shape import Shape, load_shape
from eaft_probe.progress import Progress, Silent
from eaft_probe.settings import EstimateSettings, make_settings
from eaft_probe.verbs.costs import HOST_SECONDS, device_rate, disk_bytes
from eaft_probe.verbs.row_sample import Interval, RowSample, drawn_rows, total
from eaft_probe.verbs.scan import data_format, open_data, selection


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
    keep_tokens: str  # "flagged": the disk is that of all tokens, which it has not more than
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
    renderer = Renderer(tokenizer, RenderOptions.of(chosen))
    sample = RowSample(renderer, row_format, _longest(chosen, shape), chosen.stride)
    for record in drawn_rows(source, units, chosen):
        sample.read(record)
    if not sum(sample.trained):
        raise DataError(f"none of the {len(sample.trained):,} rows looked at in {source.name} can "
                        f"be scored; `eaft-probe render` says why")  # fmt: skip
    return _estimated(sample, units, shapes, chosen)


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


def _estimated(
    sample: RowSample, units: UnitPlan, shapes: Sequence[Shape], settings: EstimateSettings
) -> Estimate:
    trained, rows = np.array(sample.trained, np.float64), units.rows
    shares = all(s.shares_prefixes for s in shapes)
    saved = sample.saved(shapes[0], settings.rows_per_unit) if shares else 0.0
    flops = sum((sample.flops(s, saved) for s in shapes), np.zeros(len(trained)))
    rate, device_flops = device_rate(settings)
    hours = _hours(sample, flops, rows, device_flops, settings)
    price = hours and settings.price_per_hour and hours.times(settings.price_per_hour)
    return Estimate(
        data=units.source.name, model=settings.model, parameters=shapes[0].parameters,
        rows=rows, units=units.count, sampled_rows=len(trained),
        rejected_share=sample.rejected / len(trained),
        trained_tokens=total(trained, rows), read_tokens=total(sample.read_tokens, rows),
        disk_bytes=total(disk_bytes(trained, sample.texts, settings), rows),
        keep_tokens=settings.keep_tokens,
        flops=total(flops, rows), shared_prefix_share=saved,
        rate=rate, device_flops=device_flops, devices=settings.devices,
        hours=hours and hours.times(1 / settings.devices), price=price or None,
    )  # fmt: skip


def _hours(
    sample: RowSample,
    flops: NDArray[np.float64],
    rows: int,
    device_flops: float | None,
    settings: EstimateSettings,
) -> Interval | None:
    """Of one device that had it all to itself."""
    if settings.tokens_per_second:
        trained = np.array(sample.trained, np.float64)
        return total(trained, rows).times(1 / settings.tokens_per_second / 3600)
    if device_flops is None:
        return None
    host = sample.read_tokens * HOST_SECONDS if settings.device_flops is None else 0.0
    return total(flops / device_flops + host, rows).times(1 / 3600)


def _lines(e: Estimate) -> Iterator[str]:
    looked = "all of them" if e.sampled_rows == e.rows else f"{e.sampled_rows:,} drawn at random"
    yield f"{e.data} under {e.model} ({e.parameters / 1e6:,.3g} million parameters)"
    yield (f"{e.rows:,} rows in {e.units:,} units; {looked} were tokenized, "
           f"{100 * e.rejected_share:.2g} % of those cannot be scored")  # fmt: skip
    yield f"scored tokens  {_told(e.trained_tokens)}"
    yield f"read tokens    {_told(e.read_tokens)}"
    yield f"disk, in MB    {_told(e.disk_bytes.times(1e-6), ',.3g')}{_more(e)}"
    saved = f"; shared prefixes save {100 * e.shared_prefix_share:.0f} % of the bodies'"
    yield f"work, in FLOP  {_told(e.flops, '.3g')}{saved if e.shared_prefix_share else ''}"
    if e.hours is None:
        yield e.rate
        return
    many = f" on {e.devices:,} devices" if e.devices > 1 else ""
    yield f"time, in hours {_told(e.hours, ',.3g')}{many}, at {e.rate}; loading not counted"
    if e.price is not None:
        yield f"price          {_told(e.price, ',.2f')}"


def _more(e: Estimate) -> str:
    """What the disk does not say of a scan that keeps some of its tokens."""
    kept = {"all": "", "flagged": " at most, as if every token were flagged;"}
    return kept.get(e.keep_tokens, "") + (
        "" if e.keep_tokens == "all" else " and up to 10 of totals"
    )


def _told(value: Interval, write: str = ",.0f") -> str:
    ends = f" (95 %: {value.low:{write}} to {value.high:{write}})"
    return f"{value.value:{write}}" + (ends if value.low < value.high else "")
