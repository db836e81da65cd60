"""`render`: which tokens of the data are trained, without a forward pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eaft_probe.data.render import Rendered, Renderer
from eaft_probe.errors import RowError
from eaft_probe.model.loading import load_tokenizer
from eaft_probe.settings import ScanSettings, make_settings
from eaft_probe.verbs.scan import data_format, open_data, selection


@dataclass(frozen=True, slots=True)
class RenderedRow:
    """A row's tokens, or the reason why it has none."""

    row: int
    rendered: Rendered | None
    reason: str | None


def render(data: Any = None, **settings: Any) -> Iterator[RenderedRow]:
    """The rows of `data` as a scan with the same settings would read them. Raises `BadInput`."""
    chosen: ScanSettings = make_settings(ScanSettings, settings)
    source = open_data(data, chosen)
    row_format = data_format(source, chosen)
    tokenizer = load_tokenizer(
        chosen.model, revision=chosen.revision, trust_remote_code=chosen.trust_remote_code
    )
    renderer = Renderer(tokenizer, chosen.train_on, chosen.tool_calls)
    rows = selection(chosen)
    for record in rows.records(source, rows.rows(source)):
        try:
            rendered = renderer(row_format(record.parse()))
        except RowError as error:
            yield RenderedRow(record.row, None, str(error))
        else:
            yield RenderedRow(record.row, rendered, None)
