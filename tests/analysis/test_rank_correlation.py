"""Rank correlations, shares, means and their intervals against plain loops."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from eaft_probe.analysis.rank_correlation import (
    agreement,
    correlation,
    interval,
    means,
    share,
    student,
)
from eaft_probe.columns.conflicts import ConflictRule


def average_ranks(values: Sequence[float]) -> list[float]:
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    a, b = sum(x) / len(x), sum(y) / len(y)
    both = math.fsum((p - a) * (q - b) for p, q in zip(x, y, strict=True))
    return both / math.sqrt(math.fsum((p - a) ** 2 for p in x) * math.fsum((q - b) ** 2 for q in y))


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    return pearson(average_ranks(x), average_ranks(y))


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Correlated, with ties in one of them."""
    random = np.random.default_rng(0)
    x = random.normal(size=80)
    return x.astype(np.float32), np.round(x + random.normal(size=80), 1)


def test_equal_weights_give_spearman_s(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pair
    for weight in (np.ones(80), np.full(80, 0.3)):
        assert correlation(x, y)(weight) == pytest.approx(spearman(x.tolist(), y.tolist()))


def test_a_weight_stands_for_that_many_tokens(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pair
    weight = np.random.default_rng(1).integers(0, 5, 80)
    wanted = spearman(np.repeat(x, weight).tolist(), np.repeat(y, weight).tolist())
    assert correlation(x, y)(weight.astype(float)) == pytest.approx(wanted)


def test_the_ends_of_the_scale() -> None:
    x = np.arange(9.0)
    assert correlation(x, x**3)(np.arange(1.0, 10)) == pytest.approx(1)
    assert correlation(x, -x)(np.ones(9)) == pytest.approx(-1)
    for a, b in ((x, 0 * x), (0 * x, 0 * x), (x[:1], x[:1]), (x[:0], x[:0])):
        assert math.isnan(correlation(a, b)(np.ones(len(a)) / 3))


def test_a_share_is_of_the_weighted_sum() -> None:
    values, weight = np.float32([1, 2, 3, 4]), np.array([4.0, 3, 2, 1])
    inside = np.array([True, False, True, False])
    assert share(values, inside)(weight) == pytest.approx((4 + 6) / (4 + 6 + 6 + 4))
    assert math.isnan(share(values * 0, inside)(weight))


def test_an_interval_covers_what_it_should() -> None:
    """95 % over fresh samples in which tokens of one example are alike."""
    random, covered = np.random.default_rng(2), 0
    example = np.repeat(np.arange(30), 4)
    for _ in range(40):
        x = np.repeat(random.normal(size=30), 4)
        low, high = interval(lambda w, x=x: float(w @ x / w.sum()), np.ones(120), example)
        covered += low <= 0 <= high
    assert covered >= 33


def test_few_examples_have_no_interval() -> None:
    found = interval(lambda w: 1.0, np.ones(90), np.repeat(np.arange(9), 10))
    assert all(map(math.isnan, found))


def test_agreement_has_a_row_for_each_measure_and_norm() -> None:
    random = np.random.default_rng(3)
    names = ("grad_full", "grad_logits", "grad_head", "prob", "entropy")
    sample = {n: random.random(200).astype(np.float32) for n in names}
    sample |= {
        "example": random.integers(0, 40, 200),
        "stands_for": random.integers(1, 9, 200).astype(np.float32),
    }
    rule = ConflictRule(0.6, 0.5)
    rows = agreement(sample, rule).set_index(["measure", "norm"])
    inside = (sample["entropy"] < np.float32(0.6)) & (sample["prob"] < np.float32(0.5))
    times = sample["stands_for"].astype(int)
    assert len(rows) == 2 + 2 + 3
    for norm in ("grad_logits", "grad_head"):
        for measure, here in (
            ("rank_correlation", inside | ~inside),
            ("conflict_rank_correlation", inside),
        ):
            row = rows.loc[measure, norm]
            both = [np.repeat(sample[n][here], times[here]).tolist() for n in (norm, "grad_full")]
            assert row["value"] == pytest.approx(spearman(*both))
            assert row["sampled"] == here.sum()
            assert -1 <= row["low"] < row["value"] < row["high"] <= 1
    for norm in ("grad_full", "grad_logits", "grad_head"):
        mass = [float(g) * float(w) for g, w in zip(sample[norm], times, strict=True)]
        wanted = math.fsum(m for m, c in zip(mass, inside, strict=True) if c) / math.fsum(mass)
        row = rows.loc["conflict_share", norm]
        assert row["value"] == pytest.approx(wanted)
        assert row["low"] < wanted < row["high"]


def test_means_and_intervals_equal_a_loop() -> None:
    random = np.random.default_rng(4)
    group, values = random.integers(0, 5, 60), random.random(60)
    group[group == 3] = 2
    group[0] = 3
    n, ((mean, half),) = means(group, [values], np.full(60, 2.5), 6)
    for g in range(6):
        mine = values[group == g].tolist()
        assert n[g] == len(mine)
        if len(mine) > 1:
            m = sum(mine) / len(mine)
            spread = math.sqrt(math.fsum((v - m) ** 2 for v in mine) / (len(mine) - 1))
            assert mean[g] == pytest.approx(m)
            t = float(student(np.array([len(mine) - 1.0]))[0])
            assert half[g] == pytest.approx(t * spread / math.sqrt(len(mine)))
    assert mean[3] == values[0]
    assert np.isnan([half[3], mean[5], half[5]]).all()


def test_a_mean_is_weighted() -> None:
    weight, values = np.array([1.0, 3, 2]), np.array([10.0, 20, 40])
    _, ((mean, half),) = means(np.zeros(3, int), [values], weight, 1)
    m = (10 + 60 + 80) / 6
    squared = (10 - m) ** 2 + 9 * (20 - m) ** 2 + 4 * (40 - m) ** 2
    assert mean[0] == pytest.approx(m)
    assert half[0] == pytest.approx(student(np.array([2.0]))[0] * math.sqrt(squared * 1.5) / 6)


def test_student_s_quantiles() -> None:
    """From the printed tables."""
    known = {3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 30: 2.042, 10**6: 1.960}
    for freedom, wanted in known.items():
        assert student(np.array([float(freedom)]))[0] == pytest.approx(wanted, rel=1.5e-3)
