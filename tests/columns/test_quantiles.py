"""Exact quantiles by counting bits, against NumPy."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from eaft_probe.columns.quantiles import quantiles

AT = [0.0, 0.001, 0.15, 0.25, 0.5, 0.75, 0.9, 0.999, 1.0]
RANDOM = np.random.default_rng(0)
TINY = np.finfo(np.float32).tiny

DATA: dict[str, Callable[[], NDArray[np.floating]]] = {
    "random": lambda: RANDOM.normal(size=10_001),
    "negative": lambda: -RANDOM.exponential(size=5000),
    "probabilities": lambda: RANDOM.beta(0.1, 0.1, size=20_000),
    "one bin": lambda: 1 + RANDOM.random(4000) * 1e-5,
    "tied": lambda: RANDOM.integers(0, 4, size=1000) / 4,
    "all the same": lambda: np.full(77, 0.3),
    "one value": lambda: np.array([-2.5]),
    "two values": lambda: np.array([5.0, -1.0]),
    "denormal": lambda: RANDOM.integers(-1000, 1000, size=999) * 1.4e-45,
    "tiny": lambda: RANDOM.normal(size=999) * TINY,
    "zeros of both signs": lambda: np.where(np.arange(101) % 2, 0.0, -0.0),
    "zeros among others": lambda: np.concatenate([np.zeros(40), -np.zeros(40), [-1, 1, 2]]),
    "huge": lambda: RANDOM.normal(size=999) * 1e38 / 4,
    "infinite ends": lambda: np.concatenate([[-np.inf], RANDOM.normal(size=9999), [np.inf]]),
}


@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("data", DATA)
def test_quantiles_equal_numpy(data: str, pieces: int) -> None:
    values = DATA[data]().astype(np.float32)
    at = AT if np.isfinite(values).all() else AT[1:-1]
    found = quantiles(lambda: np.array_split(values, pieces), at)
    wanted = np.quantile(values.astype(np.float64), at)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=0)


def test_order_of_the_quantiles_is_kept() -> None:
    values = np.arange(11, dtype=np.float32)
    assert quantiles(lambda: [values], [0.9, 0.1, 0.5, 0.5]) == [9, 1, 5, 5]


def test_ends_are_exact_even_if_infinite() -> None:
    values = np.array([np.inf, 1, -np.inf], np.float32)
    assert quantiles(lambda: [values], [0, 0.5, 1]) == [-np.inf, 1, np.inf]


@pytest.mark.parametrize("chunks", [[], [np.empty(0, np.float32)]])
def test_no_values_give_nan(chunks: list[NDArray[np.float32]]) -> None:
    assert np.isnan(quantiles(lambda: chunks, [0.1, 0.9])).all()


def test_chunks_may_be_strided() -> None:
    values = RANDOM.normal(size=(50, 2)).astype(np.float32)
    assert quantiles(lambda: [values[:, 1]], [0.5])[0] == pytest.approx(np.median(values[:, 1]))


def test_quantiles_are_plain_floats() -> None:
    """A threshold of type np.float64 would be compared in float64 and printed as its repr."""
    found = quantiles(lambda: [np.arange(10, dtype=np.float32)], [0.15, 0.5, 1])
    assert {type(q) for q in found} == {float}
    assert {type(q) for q in quantiles(list, [0.5])} == {float}
