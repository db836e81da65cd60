"""What a finished scan's model read before a token, from the text that the scan keeps."""

from collections.abc import Mapping
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

    ids: Ids  # of the whole window, what stands behind the token as well
    label: int  # the token's index among them


def contexts(
    scan: Scan, places: Mapping[str, NDArray[Any]], renderer: Renderer
) -> list[Context | None]:
    """For each place (its part, and the scan's `token_key`) its window.

    None where the example's text does not give back the tokens of the scan: rows that came as
    token ids need not.
    """
    longest = int(scan.manifest["model"]["max_length"])
    stride = int(scan.manifest["config"].get("stride") or 1)
    key = list(zip(*(places[n].tolist() for n in scan.example_key), strict=True))
    found: list[Context | None] = [None] * len(places["example"])
    for part in np.unique(places["part"]).tolist():
        mine = np.flatnonzero(places["part"] == part)
        ids = _ids(scan, part, np.unique(places["example"][mine]), renderer, longest)
        for at in mine.tolist():
            position, whole = int(places["position"][at]), ids.get(key[at])
            if whole is not None:
                start = window_start(position, longest, stride)
                found[at] = Context(whole[start : start + longest], position - start)
    return found


def _ids(
    scan: Scan, part: int, wanted: NDArray[np.int64], renderer: Renderer, longest: int
) -> dict[tuple[int, ...], Ids]:
    """Key of an example → its ids, for those whose text gives exactly the tokens that were scored.

    `wanted`: their rows."""
    key = list(scan.example_key)
    columns = [*key, "text", "tokens"]
    table = scan.example_part(part, columns)
    among = pa.array(wanted, pa.int64())
    table = table.filter(pc.is_in(table["example"], value_set=among))
    pieces = [
        p.filter(pc.is_in(p["example"], value_set=among))
        for p in scan.token_parts([*scan.token_key, "token_id"], part)
    ]
    names = (*scan.token_key, "token_id")
    scored = {n: np.concatenate([p[n].to_numpy() for p in pieces]) for n in names}
    found = {}
    for row in table.to_pylist():
        here = np.logical_and.reduce([scored[n] == row[n] for n in key])
        places, labels = scored["position"][here], scored["token_id"][here]
        ids = _encoded(row["text"], row["tokens"], renderer, longest, places, labels)
        if ids is not None:
            found[tuple(row[n] for n in key)] = ids
    return found


def _encoded(
    text: str, tokens: int, renderer: Renderer, longest: int, places: Ids, labels: Ids
) -> Ids | None:
    """The first `tokens` ids of the text, as a conversation or else as plain text."""
    for plain in (False, True):
        ids = np.asarray(renderer.encode(text, plain)[0], np.int32)
        whole = len(ids) == tokens or len(ids) > tokens == longest
        if whole and np.array_equal(ids[:tokens][places], labels):
            return ids[:tokens]
    return None
