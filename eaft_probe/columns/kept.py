"""What --keep-tokens leaves of a unit: some of its tokens, and the examples that have one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.sample import mixed

SEED = 0x5EED  # of the sample: the same tokens of the same data in every scan, so they compare


def kept_tokens(
    tokens: pa.Table, examples: pa.Table, rule: ConflictRule, share: float | None
) -> tuple[pa.Table, pa.Table]:
    """The conflicts, or a random `share` of the tokens; and the examples that have one of them."""
    columns = {n: tokens[n].to_numpy() for n in ("example", "position", "entropy", "prob")}
    chosen = rule(columns) if share is None else _drawn(columns, share)
    tokens = tokens.filter(pa.array(chosen, pa.bool_()))
    return tokens, examples.filter(pc.is_in(examples["example"], pc.unique(tokens["example"])))


def _drawn(columns: Mapping[str, NDArray[Any]], share: float) -> NDArray[np.bool_]:
    """By a hash of a token's place alone: whatever else is scored beside it."""
    key = mixed(SEED, columns["example"], columns["position"])
    drawn: NDArray[np.bool_] = key < np.uint64(share * 2.0**64)
    return drawn
