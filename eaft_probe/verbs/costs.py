"""What a scan costs: bytes of disk a token, and the FLOP/s that a device reaches."""

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from eaft_probe.columns.schemas import tokens_schema
from eaft_probe.columns.statistics import chosen_statistics
from eaft_probe.model.loading import resolve_device
from eaft_probe.settings import EstimateSettings, kept_share

# Bytes of tokens/ a scored token: 31 under a vocabulary of 512, 35 under one of 49,152
# (benchmarks/scan_memory.py); each further number column takes some 3.5 of its 4.
TOKEN_BYTES, COLUMN_BYTES, COLUMNS = 35.0, 3.5, 18
# What a scan reaches of the rate of one large product, and what rendering, tokenizing and writing
# take a token that is read (benchmarks/cost_model.py). Under SmolLM2 on 2 cores 16 and 64 rows of
# GSM8K reached 0.75 and 0.85 of 1.7e11 FLOP/s; stories260K, which hardly computes, took 29 and
# 18 µs a token with 100 and 400 rows. A GPU's have not been measured.
REACHED = {"cpu": 0.83}
HOST_SECONDS = 20e-6
PROBE = (2048, 1024, 4096)  # rows, inner and columns of that product: 0.2 s on 2 CPU cores


def disk_bytes(
    trained: NDArray[np.float64], texts: Sequence[bytes], settings: EstimateSettings
) -> NDArray[np.float64]:
    """(n,) of the rows' tokens and examples. Of --keep-tokens flagged as if all were flagged."""
    share = kept_share(settings.keep_tokens) or 1.0
    kept: NDArray[np.float64] = 1 - (1 - share) ** trained  # that an example has a token left
    return trained * share * token_bytes(settings) + example_bytes(texts) * kept


def token_bytes(settings: EstimateSettings) -> float:
    """Of tokens/, a scored token."""
    statistics = chosen_statistics(settings.statistics, settings.reference is not None)
    return TOKEN_BYTES + COLUMN_BYTES * (len(tokens_schema(statistics)) - COLUMNS)


def example_bytes(texts: Sequence[bytes]) -> NDArray[np.float64]:
    """(n,) bytes of examples/: texts and messages, compressed as all of the sample together is."""
    lengths = np.array([len(text) for text in texts], np.float64)
    packed = len(pa.compress(b"".join(texts), "zstd", asbytes=True))
    made: NDArray[np.float64] = lengths * (packed / max(lengths.sum(), 1))
    return made


def device_rate(settings: EstimateSettings) -> tuple[str, float | None]:
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
