"""The sample of a scan: stratified, nested, the same on every call and for every cutting."""

from pathlib import Path

import numpy as np
import pandas
import pytest
import scans_made

from eaft_probe import Scan
from eaft_probe.analysis.stratified_sample import (
    ACROSS,
    Strata,
    coarse_cell,
    draw_sample,
    hash_bits,
)
from eaft_probe.columns.conflicts import ConflictRule

Places = list[tuple[int, int]]


@pytest.fixture(scope="module")
def tokens() -> pandas.DataFrame:
    return scans_made.measured(scans_made.places(4000))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory, tokens: pandas.DataFrame) -> Scan:
    return scans_made.write(tmp_path_factory.mktemp("made") / "s", tokens, group=300)


def places(scan: Scan, size: int, seed: int = 0) -> Places:
    found = draw_sample(scan, size, seed, [])
    return list(zip(found["example"].tolist(), found["position"].tolist(), strict=True))


def frame(scan: Scan, size: int, seed: int = 0) -> pandas.DataFrame:
    return pandas.DataFrame(draw_sample(scan, size, seed, ["grad_head"]))


def cell_of(tokens: pandas.DataFrame) -> pandas.Series:
    """A sixteenth of probability and half a nat of entropy."""
    across = np.minimum(np.floor(tokens["prob"].astype(np.float64) * 16), 15)
    return (16 * np.floor(tokens["entropy"].astype(np.float64) * 2) + across).astype(int)


def test_cells_are_a_sixteenth_by_half_a_nat(tokens: pandas.DataFrame) -> None:
    assert ACROSS == 16
    np.testing.assert_array_equal(
        coarse_cell({n: tokens[n].to_numpy() for n in tokens}), cell_of(tokens)
    )


def test_every_cell_is_drawn_from(scan: Scan, tokens: pandas.DataFrame) -> None:
    found = frame(scan, 512)
    assert len(found) == len(found.drop_duplicates(["example", "position"])) == 512
    assert set(cell_of(found)) == set(cell_of(tokens))


def test_a_third_goes_to_the_conflicts_while_they_last(
    scan: Scan, tokens: pandas.DataFrame
) -> None:
    all_of = int(ConflictRule()(tokens).sum())
    for size in (60, 300, 2000):
        found = int(ConflictRule()(frame(scan, size)).sum())
        assert found == all_of or found >= size / 3 - 5
        assert found > size * all_of / len(tokens)


def test_a_stratum_says_how_many_tokens_it_has(scan: Scan, tokens: pandas.DataFrame) -> None:
    found, conflict = frame(scan, 512), ConflictRule()(tokens)
    counts = (2 * cell_of(tokens) + conflict).value_counts()
    wanted = counts.loc[2 * cell_of(found) + ConflictRule()(found)]
    np.testing.assert_array_equal(found["stratum_tokens"], wanted)


def test_columns_are_those_of_the_token(scan: Scan, tokens: pandas.DataFrame) -> None:
    found = frame(scan, 200).merge(tokens, on=["example", "position"], suffixes=("", "_own"))
    assert len(found) == 200
    for name in ("prob", "entropy", "grad_head"):
        np.testing.assert_array_equal(found[name], found[f"{name}_own"])


def test_a_larger_sample_begins_with_the_smaller(scan: Scan) -> None:
    largest = places(scan, 3999)
    for size in (1, 2, 30, 511, 512, 2500):
        assert places(scan, size) == largest[:size]


def test_a_sample_may_be_all_there_is(scan: Scan, tokens: pandas.DataFrame) -> None:
    everything = sorted(zip(tokens["example"], tokens["position"], strict=True))
    for size in (4000, 99_999):
        assert sorted(places(scan, size)) == everything


def test_a_sample_depends_on_the_seed_alone(
    scan: Scan, tokens: pandas.DataFrame, tmp_path: Path
) -> None:
    """Not on parts, row groups or the rule."""
    split = scans_made.write(tmp_path / "s", tokens, parts=5, rule=ConflictRule(3, 0.9))
    assert places(split, 300) == places(scan, 300)
    other = places(scan, 300, seed=1)
    assert other != places(scan, 300)
    assert 0 < len({*other} & {*places(scan, 300)}) < 300


def test_tokens_of_a_cell_are_drawn_at_random(scan: Scan, tokens: pandas.DataFrame) -> None:
    """Over the whole data, and each as likely as the other, over many seeds."""
    largest = cell_of(tokens).mode()[0]
    inside = tokens[cell_of(tokens) == largest]
    order = {p: i for i, p in enumerate(zip(inside["example"], inside["position"], strict=True))}
    ranks = [order[p] for seed in range(40) for p in places(scan, 100, seed) if p in order]
    assert len(ranks) > 200
    assert abs(np.mean(ranks) / len(order) - 0.5) < 4 / np.sqrt(12 * len(ranks))


def test_memory_does_not_grow_with_the_scan() -> None:
    """What is held between pieces: the quotas, however large the counts."""
    counts = np.zeros(1024, np.int64)
    counts[:200:2] = 10**9
    counts[1:200:20] = 10**6
    held = np.minimum(Strata(counts, 0).quotas(500), counts).sum()
    assert 500 <= held < 2500


def test_keys_are_spread_and_depend_on_each_number() -> None:
    keys = hash_bits(0, np.repeat(np.arange(100), 100), np.tile(np.arange(100), 100))
    assert len(np.unique(keys)) == 10_000
    assert abs((keys / 2.0**64).mean() - 0.5) < 0.02
    assert hash_bits(0, 1, 2) != hash_bits(0, 2, 1)
    assert hash_bits(-1, 5)[0] != hash_bits(1, 5)[0]
