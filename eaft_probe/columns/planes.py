"""The entropy–probability plane of a scan: exact 2-D histograms, out of core, cached, mergeable."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eaft_probe.columns.part_files import CACHE
from eaft_probe.columns.table import Scan
from eaft_probe.files import own_file, written_aside

# Cells of 1/256 in probability and 1/32 nat in entropy, up to 16 nats (the uniform distribution
# over 9 million tokens). Powers of two: a float32 times the step is exact, so is its cell, and
# 2 × 2 cells make one of the next coarser plane. Equal for every scan: planes add up.
PROB_BINS, ENTROPY_BINS = 256, 512
PROB_STEP, ENTROPY_STEP = 1 / 256, 1 / 32
CELLS = PROB_BINS * ENTROPY_BINS
FORMAT = 1  # of the cached files; another number makes the old ones unread

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Plane:
    """How many tokens lie where. Rows are entropy, rising; columns are probability, rising."""

    counts: NDArray[np.int64]  # (ENTROPY_BINS, PROB_BINS)

    def coarse(self, by: int) -> NDArray[np.int64]:
        """The counts with by × by cells summed; `by` a power of two up to 256."""
        return coarse(self.counts, by)

    def __add__(self, other: "Plane") -> "Plane":
        return Plane(self.counts + other.counts)


def coarse(values: NDArray[Any], by: int) -> NDArray[Any]:
    """(R, C) → (R / by, C / by), sums over squares of cells."""
    rows, columns = values.shape
    summed: NDArray[Any] = values.reshape(rows // by, by, columns // by, by).sum((1, 3))
    return summed


def cell(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """(N,) index of each token's cell in a flattened plane."""
    across = (columns["prob"] * PROB_BINS).astype(np.int64).clip(0, PROB_BINS - 1)
    up = (columns["entropy"] / ENTROPY_STEP).astype(np.int64).clip(0, ENTROPY_BINS - 1)
    index: NDArray[np.int64] = up * PROB_BINS + across
    return index


def plane(scan: Scan) -> Plane:
    """The whole scan's plane, from the cache where it has been made before."""

    def count() -> Arrays:
        counts = np.zeros(CELLS, np.int64)
        for part in scan.token_arrays(["prob", "entropy"]):
            counts += np.bincount(cell(part), minlength=CELLS)
        return {"counts": counts.reshape(ENTROPY_BINS, PROB_BINS)}

    shapes = {"counts": (ENTROPY_BINS, PROB_BINS)}
    return Plane(cached(scan, "plane", "", count, shapes)["counts"])


def cached(
    scan: Scan,
    name: str,
    key: str,
    make: Callable[[], Arrays],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Arrays:
    """`make()`, or what it gave before for this very scan and `key`; kept in the scan's `cache/`.

    A cache that cannot be read, that has other arrays than `shapes` says, or `counts` that are not
    the scan's tokens, is made anew; one that cannot be written is done without.
    """
    said = json.dumps([FORMAT, name, key, scan.manifest], sort_keys=True)
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    path = scan.path / CACHE / f"{name}-{digest}.npz"
    if path.parent.is_symlink():  # a folder somewhere else is nothing to read from or write to
        return make()
    try:
        return _stored(scan, path, shapes)
    except Exception:  # not there, or damaged: zlib, zip, npy and tokenizer errors of all kinds
        made = make()
    _store(path, made)
    return made


def _stored(scan: Scan, path: Path, shapes: Mapping[str, tuple[int, ...]] | None) -> Arrays:
    """Raises for what is no cache of this scan's tokens."""
    with zipfile.ZipFile(own_file(path.parent, path.name)) as archive:
        sizes = [entry.file_size for entry in archive.infolist()]
        if len(sizes) > 8 or max(sizes) > 16 * CELLS:  # before it is unpacked; a plane has 8
            raise ValueError("larger than any cache")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        arrays = dict(stored)
    tokens = scan.manifest["counts"]["trained_tokens"]
    counts = arrays.get("counts", np.array(tokens))
    sound = all(a.dtype.kind in "if" and np.isfinite(a).all() for a in arrays.values())
    alike = shapes is None or {n: a.shape for n, a in arrays.items()} == shapes
    if not (sound and alike and counts.min() >= 0 and counts.sum() == tokens):
        raise ValueError("not this scan's tokens")
    return arrays


def _store(path: Path, arrays: Arrays) -> None:
    with suppress(OSError):  # a scan on a read-only disk is read just as well
        path.parent.mkdir(exist_ok=True)
        with written_aside(path) as aside, aside.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)


# --- what can be reached ---


def least_entropy(prob: NDArray[Any]) -> NDArray[Any]:
    """The binary entropy −p ln p − (1 − p) ln(1 − p), nats: all the rest on one other token."""
    p = np.clip(np.asarray(prob, np.float64), 1e-12, 1 - 1e-12)
    bound: NDArray[Any] = -p * np.log(p) - (1 - p) * np.log1p(-p)
    return bound


def greatest_entropy(prob: NDArray[Any], vocab_size: int) -> NDArray[Any]:
    """The rest spread evenly: binary entropy + (1 − p) ln(V − 1), nats."""
    bound: NDArray[Any] = least_entropy(prob) + (1 - prob) * np.log(max(vocab_size - 1, 1))
    return bound
