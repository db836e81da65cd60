"""What a scan takes on disk."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eaft_probe.columns.statistics import chosen_statistics
from eaft_probe.scans.schemas import tokens_schema
from eaft_probe.settings import EstimateSettings, kept_share

# Bytes of tokens/ a scored token: 31 under a vocabulary of 512, 35 under one of 49,152
# (benchmarks/scan_memory.py); each further number column takes some 3.5 of its 4.
TOKEN_BYTES, COLUMN_BYTES, COLUMNS = 35.0, 3.5, 18


def disk_bytes(
    trained: NDArray[np.float64], texts: Sequence[bytes], settings: EstimateSettings
) -> NDArray[np.float64]:
    """(n,) of the rows' tokens and examples. Of --keep-tokens flagged as if all were flagged."""
    share = kept_share(settings.keep_tokens) or 1.0
    statistics = chosen_statistics(settings.statistics, settings.reference is not None)
    token_bytes = TOKEN_BYTES + COLUMN_BYTES * (len(tokens_schema(statistics)) - COLUMNS)
    kept: NDArray[np.float64] = 1 - (1 - share) ** trained  # that an example has a token left
    return trained * share * token_bytes + example_bytes(texts) * kept


def example_bytes(texts: Sequence[bytes]) -> NDArray[np.float64]:
    """(n,) bytes of examples/: texts and messages, compressed as all of the sample together is."""
    lengths = np.array([len(text) for text in texts], np.float64)
    packed = len(pa.compress(b"".join(texts), "zstd", asbytes=True))
    return np.asarray(lengths * (packed / max(lengths.sum(), 1)), np.float64)
