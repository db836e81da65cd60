"""`scan --dry-run`: units, tokens, disk, hours and money of a scan, from a sample of its rows.

plan → tokenize rows drawn at random → multiply up, with the sampling's uncertainty → time at a rate
of tokens/s: the one that is given, or what this machine reaches on a few of the rows.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import AutoConfig

from eaft_probe.data.formats import RowFormat
from eaft_probe.data.opening import data_format, open_data, require_obeyed, selection
from eaft_probe.data.reading import Reader
from eaft_probe.data.record import Record
from eaft_probe.data.rendering.render import Renderer, RenderOptions
from eaft_probe.data.sources import Source
from eaft_probe.data.units import Unit, UnitPlan
from eaft_probe.errors import BadInput, DataError
from eaft_probe.model.foreign import loads, quiet
from eaft_probe.model.lengths import longest_input
from eaft_probe.model.loading import load_tokenizer, resolve_device
from eaft_probe.model.resolve import find_model
from eaft_probe.progress import Progress, Silent
from eaft_probe.progress_bar import watched
from eaft_probe.quantities import bytes_text, counted_noun, duration, number, percent
from eaft_probe.scans.schemas import EXAMPLE_COLUMNS
from eaft_probe.settings import EstimateSettings, make_settings
from eaft_probe.verbs.estimate.costs import disk_bytes
from eaft_probe.verbs.estimate.row_sample import (
    Interval,
    SampledRow,
    drawn_rows,
    sampled_row,
    total,
)
from eaft_probe.verbs.scan.load_scorer import Loading, with_absolute_paths
from eaft_probe.verbs.scan.plan import batch_tokens

TIMED_ROWS = 32  # of the sample, which are scored where no rate is given


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a scan would take. The intervals are those of the sampling, at the rate that is said."""

    data: str
    model: str
    rows: int
    units: int
    sampled_rows: int
    rejected_share: float  # of the sampled rows
    trained_tokens: Interval
    read_tokens: Interval
    disk_bytes: Interval
    keep_tokens: str  # "flagged": the disk is that of all tokens, which it has not more than
    tokens_per_second: float  # scored tokens, of one device
    measured: bool  # whether that is what this machine reached; else it was given
    hours: Interval  # on all devices; loading not counted
    devices: int
    price: Interval | None  # of all devices

    def summary(self) -> dict[str, object]:
        """What `--json` prints."""
        return {
            name: value._asdict() if isinstance(value, Interval) else value
            for name, value in vars(self).items()
        }

    def __str__(self) -> str:
        return "\n".join(_lines(self))


@watched
def estimate(data: Any = None, *, progress: Progress | None = None, **settings: Any) -> Estimate:
    """What a scan of `data` with these settings would take.

    Every argument is a field of `EstimateSettings` and a flag of `eaft-probe scan --dry-run`.
    Raises `BadInput` where the scan would for its data, its flags or its model.
    """
    chosen: EstimateSettings = make_settings(EstimateSettings, settings)
    progress = progress or Silent()
    source = open_data(data, chosen, progress.note)
    require_obeyed(source, chosen)
    row_format = data_format(source, chosen, EXAMPLE_COLUMNS)
    progress.note(f"counting the rows of {source.name}")
    units = UnitPlan.of(source, selection(chosen), chosen.rows_per_unit)
    sample = _sample(source, units, row_format, chosen)
    scorable = [row.record for row in sample if row.trained]
    if not scorable:
        raise DataError(
            f"none of the {len(sample):,} sampled rows of {source.name} can be scored; "
            f"`eaft-probe render` says why"
        )
    rate = chosen.tokens_per_second or _measured(scorable, row_format, chosen, progress)
    return _estimated(sample, units, rate, chosen)


def _sample(
    source: Source, units: UnitPlan, row_format: RowFormat, settings: EstimateSettings
) -> list[SampledRow]:
    tokenizer = load_tokenizer(
        settings.model,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        adapter=settings.adapter,
    )
    reader = Reader(row_format, Renderer(tokenizer, RenderOptions.of(settings)).renderings)
    longest = context_length(settings.model, settings, tokenizer)
    if (settings.max_length or 0) > longest:
        raise BadInput(
            f"--max-length {settings.max_length} is more than {settings.model} reads "
            f"({longest} tokens)"
        )
    longest = settings.max_length or longest
    records = drawn_rows(source, units, settings)
    return [sampled_row(record, reader, longest, settings.stride) for record in records]


@loads
def context_length(name: str, settings: EstimateSettings, tokenizer: Any) -> int:
    """Tokens that a model reads, by its configuration: no weights are read."""
    place = find_model(name, settings.revision, weights=False)
    file = {"gguf_file": place.gguf} if place.gguf else {}
    with quiet():
        config = AutoConfig.from_pretrained(
            place.folder, trust_remote_code=settings.trust_remote_code, **file
        )
    return longest_input(config.get_text_config(), tokenizer)


def _measured(
    records: Sequence[Record], row_format: RowFormat, settings: EstimateSettings, progress: Progress
) -> float:
    """Scored tokens a second of this machine. No part is written."""
    if settings.tp:
        raise BadInput("--dry-run with --tp: give --tokens-per-second, which a short scan shows")
    unit = Unit(0, tuple(records[:TIMED_ROWS]))
    progress.note(
        f"scoring {counted_noun(len(unit.records), 'row')} to see how fast this machine is"
    )
    budget = batch_tokens(settings, resolve_device(settings.device))
    scorer = Loading(None, row_format, with_absolute_paths(settings), budget)(Silent())
    began = time.perf_counter()
    rows = scorer.read(unit)
    scorer.score(unit, rows)
    return float(rows.counts["trained_tokens"] / (time.perf_counter() - began))


def _estimated(
    sample: Sequence[SampledRow], units: UnitPlan, rate: float, settings: EstimateSettings
) -> Estimate:
    trained, read = (np.array([getattr(r, n) for r in sample], float) for n in ("trained", "read"))
    rows, texts = units.rows, [row.text for row in sample]
    hours = total(trained, rows).times(1 / rate / 3600)  # of one device
    return Estimate(
        data=units.source.name,
        model=settings.model,
        rows=rows,
        units=units.count,
        sampled_rows=len(sample),
        rejected_share=sum(not row.trained for row in sample) / len(sample),
        trained_tokens=total(trained, rows),
        read_tokens=total(read, rows),
        disk_bytes=total(disk_bytes(trained, texts, settings), rows),
        keep_tokens=settings.keep_tokens,
        tokens_per_second=rate,
        measured=settings.tokens_per_second is None,
        hours=hours.times(1 / settings.devices),
        devices=settings.devices,
        price=hours.times(settings.price_per_hour) if settings.price_per_hour else None,
    )


def _lines(e: Estimate) -> Iterator[str]:
    looked = "all of them" if e.sampled_rows == e.rows else f"{e.sampled_rows:,} drawn at random"
    yield f"{e.data} under {e.model}"
    yield (
        f"{counted_noun(e.rows, 'row')} in {counted_noun(e.units, 'unit')}; {looked} were "
        f"tokenized, {percent(e.rejected_share)} of those cannot be scored"
    )
    yield f"scored tokens  {_interval(e.trained_tokens, number)}"
    yield f"read tokens    {_interval(e.read_tokens, number)}"
    at_most = " at most, as if every token were flagged;" if e.keep_tokens == "flagged" else ""
    totals = "" if e.keep_tokens == "all" else " and up to 10 MB for totals"
    yield f"disk           {_interval(e.disk_bytes, bytes_text)}{at_most}{totals}"
    many = f" on {e.devices:,} devices" if e.devices > 1 else ""
    how = "as measured on this machine" if e.measured else "as given"
    yield (
        f"time           {_interval(e.hours.times(3600), duration)}{many}, at "
        f"{e.tokens_per_second:,.0f} scored tokens/s a device, {how}; loading not counted"
    )
    if e.price is not None:
        yield f"price          {_interval(e.price, _money)}"


def _interval(value: Interval, write: Callable[[float], str]) -> str:
    ends = f" (95 %: {write(value.low)} to {write(value.high)})"
    return write(value.value) + (ends if value.low < value.high else "")


def _money(amount: float) -> str:
    return "less than 0.01" if 0 < amount < 0.01 else f"{amount:,.2f}"
