"""What --keep-tokens leaves of a unit: some of its tokens, and the examples that have one."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eaft_probe.analysis.stratified_sample import hash_bits
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.scans.keys import Arrays, key_of, sortable

SEED = 0x5EED  # of the sample: the same tokens of the same data in every scan, so they compare


def kept_tokens(
    tokens: pa.Table, examples: pa.Table, rule: ConflictRule, share: float | None
) -> tuple[pa.Table, pa.Table]:
    """The conflicts, or a random `share` of the tokens; and the examples that have one of them."""
    key = key_of(examples)
    columns = {n: tokens[n].to_numpy() for n in (*key, "position", "entropy", "prob")}
    chosen = rule(columns) if share is None else _drawn(columns, (*key, "position"), share)
    tokens = tokens.filter(pa.array(chosen, pa.bool_()))
    has_token = np.isin(sortable(examples, key), sortable(tokens, key))
    return tokens, examples.filter(pa.array(has_token))


def _drawn(columns: Arrays, token_key: Sequence[str], share: float) -> NDArray[np.bool_]:
    """By a hash of a token's key alone: whatever else is scored with it."""
    return hash_bits(SEED, *(columns[n] for n in token_key)) < np.uint64(share * 2.0**64)
