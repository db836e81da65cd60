"""`render`: which tokens of the data are trained, without a forward pass."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from eaft_probe.data.opening import data_format, open_data, require_obeyed, selection
from eaft_probe.data.reading import Reader, Rejected
from eaft_probe.data.rendering.render import Renderer, RenderOptions
from eaft_probe.data.rendering.rendered import Rendered
from eaft_probe.model.loading import load_tokenizer
from eaft_probe.progress import Progress, Silent
from eaft_probe.settings import RenderSettings, as_scan, make_settings


def render(
    data: Any = None, *, progress: Progress | None = None, **settings: Any
) -> Iterator[tuple[int, Rendered] | Rejected]:
    """(row number, rendering) of each rendering of `data`, as a scan with the same settings would
    read it, or why a row has none. Raises `BadInput`."""
    chosen: RenderSettings = make_settings(RenderSettings, settings)
    chosen.require_sample()
    reading = as_scan(chosen)
    source = open_data(data, reading, (progress or Silent()).note)
    require_obeyed(source, reading)
    tokenizer = load_tokenizer(
        chosen.model,
        adapter=chosen.adapter,
        revision=chosen.revision,
        trust_remote_code=chosen.trust_remote_code,
    )
    renderer = Renderer(tokenizer, RenderOptions.of(chosen))
    reader = Reader(data_format(source, reading), renderer.renderings, chosen.strict)
    rows = selection(reading)
    for record in rows.records(source, rows.rows(source)):
        found = reader(record)
        if isinstance(found, Rejected):
            yield found
        else:
            yield from ((record.row, rendered) for rendered in found[1])


def as_json(row: int, rendered: Rendered) -> dict[str, Any]:
    """A rendering as `render --json` prints it; positions are characters of `text`."""
    turn = {} if rendered.of_turn is None else {"turn": rendered.of_turn}
    return {
        "row": row,
        "key": rendered.key or str(row),
        **turn,
        "text": rendered.text,
        "trained": trained_spans(rendered),
        "tokens": len(rendered.ids),
        "trained_tokens": int(rendered.trained[1:].sum()),
        "left_out": dict(rendered.left_out),
        "not_read": list(rendered.not_read),
    }


def rejected_json(rejected: Rejected) -> dict[str, Any]:
    return {
        "row": rejected.row,
        "key": rejected.key or str(rejected.row),
        "rejected": rejected.reason,
    }


def trained_spans(rendered: Rendered) -> list[list[int]]:
    """[first, past] characters of each run of neighbouring trained tokens."""
    trained = rendered.trained.copy()
    trained[:1] = False  # nothing predicts it
    chars = rendered.chars[trained]
    cuts = [
        0,
        *(i + 1 for i, (a, b) in enumerate(pairwise(chars.tolist())) if b[0] > a[1]),
        len(chars),
    ]
    return [[int(chars[a, 0]), int(np.max(chars[a:b, 1]))] for a, b in pairwise(cuts) if a < b]
