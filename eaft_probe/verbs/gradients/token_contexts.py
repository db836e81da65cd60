"""What a finished scan's model read before a token, from the text that the scan keeps."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from eaft_probe.data.batches import window_start
from eaft_probe.data.rendering.render import Renderer
from eaft_probe.scans.scan import Scan

Ids = NDArray[np.int32]


class Context(NamedTuple):
    """A token in the window in which the scan read it."""

    ids: Ids  # of the whole window, also those after the token
    label: int  # the token's index among them


def contexts(
    scan: Scan, tokens: Mapping[str, NDArray[Any]], renderer: Renderer
) -> list[Context | None]:
    """For each of the tokens (its part, and the scan's `token_key`) its window.

    None where the example's text does not give the tokens of the scan, as for some rows that came
    as token ids.
    """
    longest = int(scan.manifest["model"]["max_length"])
    stride = int(scan.manifest["config"].get("stride") or 1)
    examples = list(zip(*(tokens[n].tolist() for n in scan.example_key), strict=True))
    windows: list[Context | None] = [None] * len(examples)
    for part in np.unique(tokens["part"]).tolist():
        in_part = np.flatnonzero(tokens["part"] == part)
        ids_of = dict(_ids(scan, part, tokens["example"][in_part], renderer, longest))
        for index in in_part.tolist():
            position, ids = int(tokens["position"][index]), ids_of.get(examples[index])
            if ids is not None:
                start = window_start(position, longest, stride)
                windows[index] = Context(ids[start : start + longest], position - start)
    return windows


def _ids(
    scan: Scan, part: int, rows: NDArray[np.int64], renderer: Renderer, longest: int
) -> Iterator[tuple[tuple[int, ...], Ids]]:
    """(key of an example, its ids) for those of `rows` whose text gives exactly the tokens that
    were scored."""
    key, names = scan.example_key, [*scan.token_key, "token_id"]

    def in_rows(table: pa.Table) -> pa.Table:
        return table.filter(pc.is_in(table["example"], value_set=pa.array(rows, pa.int64())))

    tables = [in_rows(piece) for piece in scan.token_parts(names, part)]
    scored = {n: np.concatenate([t[n].to_numpy() for t in tables]) for n in names}
    for example in in_rows(scan.example_part(part, [*key, "text", "tokens"])).to_pylist():
        own = np.logical_and.reduce([scored[n] == example[n] for n in key])
        tokens = scored["position"][own], scored["token_id"][own]
        ids = scanned_ids(renderer, example["text"], example["tokens"], *tokens, longest)
        if ids is not None:
            yield tuple(example[n] for n in key), ids


def scanned_ids(
    renderer: Renderer,
    text: str,
    count: int,
    positions: NDArray[np.int32],
    labels: NDArray[np.int32],
    longest: int,
) -> Ids | None:
    """The `count` ids of an example's text, if they have the scored `labels` at their `positions`.

    `longest`: tokens at which the scan cut a conversation.
    """
    for plain in (False, True):  # as a conversation or else as plain text
        ids = renderer.encode(text, plain)[0]
        whole = len(ids) == count or len(ids) > count == longest
        scanned = np.asarray(ids[:count], np.int32)
        if whole and np.array_equal(scanned[positions], labels):
            return scanned
    return None
