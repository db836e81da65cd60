"""The plane against a double loop, and its bounds against brute force."""

import hashlib
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pytest
import scans_made
from numpy.typing import NDArray

from eaft_probe.analysis.histogram2d import (
    ENTROPY_BINS,
    PROB_BINS,
    Plane,
    coarse,
    greatest_entropy,
    histogram,
    least_entropy,
)
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.groups import GROUPS, HIGH_ENTROPY, LOW_ENTROPY, groups
from eaft_probe.errors import MissingColumn
from eaft_probe.scans.scan import Scan

# Where rounding shows: ends of the range, edges of cells and their neighbours, float32 all.
PROBS = [0.0, 1e-45, 1 / 256, 0.2, 0.5, 1.0, *np.nextafter(np.float32([1 / 256, 0.5, 1]), 0)]
ENTROPIES = [0.0, 1 / 32, 0.509, 2.0, 15.99, 16.0, 31.5, *np.nextafter(np.float32([1 / 32, 2]), 0)]


@pytest.fixture
def tokens() -> pandas.DataFrame:
    made = scans_made.measured(scans_made.places(300))
    grid = np.float32([(p, h) for p in PROBS for h in ENTROPIES])
    made.loc[: len(grid) - 1, ["prob", "entropy"]] = grid
    return made


@pytest.fixture
def scan(tmp_path: Path, tokens: pandas.DataFrame) -> Scan:
    return scans_made.write(tmp_path / "s", tokens)


def counted(tokens: pandas.DataFrame) -> NDArray[np.int64]:
    """Every token's cell by division and floor; the last cells hold what lies beyond."""
    found: Counter[tuple[int, int]] = Counter()
    for p, h in zip(tokens["prob"], tokens["entropy"], strict=True):
        across = min(math.floor(float(p) / (1 / 256)), 255)
        found[min(math.floor(float(h) / (1 / 32)), 511), across] += 1
    counts = np.zeros((512, 256), np.int64)
    for (up, across), count in found.items():
        counts[up, across] = count
    return counts


# --- counts ---


def test_counts_equal_a_loop_over_the_tokens(scan: Scan, tokens: pandas.DataFrame) -> None:
    np.testing.assert_array_equal(histogram(scan).counts, counted(tokens))


def test_a_sure_label_and_16_nats_lie_in_the_last_cells(tmp_path: Path) -> None:
    tokens = scans_made.measured(scans_made.places(3)).assign(
        prob=np.float32([1, 1, 0]), entropy=np.float32([0, 16, 99])
    )
    counts = histogram(scans_made.write(tmp_path / "s", tokens, parts=1)).counts
    assert [counts[0, 255], counts[511, 255], counts[511, 0]] == [1, 1, 1]


@pytest.mark.parametrize(("parts", "group"), [(1, None), (1, 7), (5, 3), (50, None)])
def test_counts_do_not_depend_on_parts_and_row_groups(
    tmp_path: Path, tokens: pandas.DataFrame, parts: int, group: int | None
) -> None:
    scan = scans_made.write(tmp_path / "s", tokens, parts=parts, group=group)
    assert len(scan.part_files("tokens")) == parts
    np.testing.assert_array_equal(histogram(scan).counts, counted(tokens))


def test_planes_of_disjoint_scans_add_up(tmp_path: Path, tokens: pandas.DataFrame) -> None:
    half = tokens["example"] < tokens["example"].max() / 2
    first, second = (
        scans_made.write(tmp_path / str(i), tokens[m]) for i, m in ((0, half), (1, ~half))
    )
    np.testing.assert_array_equal((histogram(first) + histogram(second)).counts, counted(tokens))


@pytest.mark.parametrize("by", [1, 2, 4, 8, 256])
def test_coarse_cells_are_sums_of_fine_ones(scan: Scan, by: int) -> None:
    fine, found = histogram(scan).counts, histogram(scan).coarse(by)
    assert found.shape == (ENTROPY_BINS // by, PROB_BINS // by)
    assert found.sum() == 300
    for up in range(min(len(found), 9)):
        for across in range(found.shape[1]):
            square = fine[up * by : (up + 1) * by, across * by : (across + 1) * by]
            assert found[up, across] == square.sum()


def test_coarse_of_masses_keeps_the_total() -> None:
    mass = np.random.default_rng(0).random((ENTROPY_BINS, PROB_BINS))
    assert coarse(mass, 8).sum() == pytest.approx(mass.sum())


def test_adding_leaves_both_as_they_were() -> None:
    one = Plane(np.ones((2, 2), np.int64))
    assert (one + one).counts.sum() == 8
    assert one.counts.sum() == 4


# --- groups ---


def test_groups_are_what_they_say(tokens: pandas.DataFrame) -> None:
    columns = {c: tokens[c].to_numpy() for c in ("entropy", "prob", "rank")}
    found = groups(columns, ConflictRule(0.6, 0.3))
    wanted = {
        "conflict": (tokens["entropy"] < np.float32(0.6)) & (tokens["prob"] < np.float32(0.3)),
        "low": tokens["entropy"] <= LOW_ENTROPY,
        "high": tokens["entropy"] >= HIGH_ENTROPY,
        "agreeing": tokens["rank"] == 0,
        "all": tokens["rank"] >= 0,
    }
    assert list(found) == list(GROUPS) == list(wanted)
    for name, mask in wanted.items():
        assert mask.sum() > 0
        np.testing.assert_array_equal(found[name], mask, err_msg=name)


# --- no cache: a scan's folder may come from anybody ---


def test_a_forged_cache_is_not_read_and_none_is_written(
    scan: Scan, tokens: pandas.DataFrame
) -> None:
    (scan.path / "cache").mkdir()
    said = json.dumps([1, "plane", "", scan.manifest], sort_keys=True)  # the name that was read
    name = f"plane-{hashlib.sha256(said.encode()).hexdigest()[:16]}.npz"
    forged = counted(tokens)[::-1]  # as many tokens, elsewhere
    np.savez_compressed(scan.path / "cache" / name, counts=forged)
    before = sorted(scan.path.rglob("*"))
    np.testing.assert_array_equal(histogram(Scan.open(scan.path)).counts, counted(tokens))
    assert sorted(scan.path.rglob("*")) == before


def test_the_plane_does_not_depend_on_the_rule(scan: Scan) -> None:
    before = histogram(scan).counts
    after = histogram(scan.flag(ConflictRule(2, 0.5))).counts
    np.testing.assert_array_equal(before, after)


# --- reading pieces ---


def test_pieces_of_one_part_are_that_part(tmp_path: Path, tokens: pandas.DataFrame) -> None:
    scan = scans_made.write(tmp_path / "s", tokens, parts=4, group=11)
    pieces = [pa.concat_tables(scan.token_parts(["example", "conflict"], i)) for i in range(4)]
    assert [len(p) for p in pieces] == [part["rows"] for part in scan.manifest["parts"]]
    whole = scan.tokens(["example", "conflict"])
    pandas.testing.assert_frame_equal(pa.concat_tables(pieces).to_pandas(), whole)
    assert whole["conflict"].sum() == len(scan.conflicts())


def test_pieces_are_row_groups(tmp_path: Path, tokens: pandas.DataFrame) -> None:
    scan = scans_made.write(tmp_path / "s", tokens, parts=1, group=11)
    sizes = [len(piece["prob"]) for piece in scan.token_arrays(["prob"])]
    assert sizes == [11] * 27 + [3]


def test_columns_come_in_the_order_asked_for(scan: Scan) -> None:
    names = ["conflict", "prob", "example", "entropy"]
    assert all(list(piece) == names for piece in scan.token_arrays(names))
    assert all(piece.column_names == names for piece in scan.token_parts(names))


def test_an_empty_part_gives_one_empty_piece(tmp_path: Path, tokens: pandas.DataFrame) -> None:
    few = tokens[tokens["example"] == 0]
    scan = scans_made.write(tmp_path / "s", few, parts=3)
    sizes = [len(piece["prob"]) for piece in scan.token_arrays(["prob", "conflict"])]
    assert sizes == [len(few), 0, 0]


def test_a_missing_column_names_the_statistic(tmp_path: Path, tokens: pandas.DataFrame) -> None:
    scan = scans_made.write(tmp_path / "s", tokens, without=["entropy_top50"])
    with pytest.raises(MissingColumn, match="rescan with --statistics entropy_top50"):
        next(scan.token_arrays(["entropy_top50"]))


# --- bounds ---


@pytest.mark.parametrize("vocab", [2, 3, 50])
def test_every_distribution_lies_between_the_bounds(vocab: int) -> None:
    random = np.random.default_rng(vocab)
    for spread in (0.02, 0.3, 1, 30):
        for p in random.dirichlet([spread] * vocab, 300):
            entropy = -math.fsum(x * math.log(x) for x in p if x > 0)
            least, greatest = least_entropy(p[:1])[0], greatest_entropy(p[:1], vocab)[0]
            assert least - 1e-9 <= entropy <= greatest + 1e-9


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.2, 0.5, 0.8, 0.999999])
def test_the_bounds_are_reached(p: float) -> None:
    """By all the rest on one token, and by the rest spread evenly."""
    rest = (1 - p) / 63
    assert least_entropy(np.array([p]))[0] == pytest.approx(
        -p * math.log(p) - (1 - p) * math.log(1 - p), rel=1e-9
    )
    assert greatest_entropy(np.array([p]), 64)[0] == pytest.approx(
        -p * math.log(p) - 63 * rest * math.log(rest), rel=1e-9
    )


def test_bounds_at_the_ends() -> None:
    ends = np.array([0.0, 1.0])
    np.testing.assert_allclose(least_entropy(ends), 0, atol=1e-10)
    np.testing.assert_allclose(greatest_entropy(ends, 64), [math.log(63), 0], atol=1e-10)
    np.testing.assert_allclose(greatest_entropy(np.array([0.3]), 1), least_entropy(np.array([0.3])))


def test_below_half_a_nat_a_label_is_on_one_of_two_branches() -> None:
    """METHODS section 1: H ≤ 0.5 nats means p ≤ 0.1997 or p ≥ 0.8003."""
    p = np.linspace(0.1998, 0.8002, 1001)
    assert (least_entropy(p) > 0.5).all()
    assert least_entropy(np.array([0.1996]))[0] < 0.5


def test_made_distributions_lie_between_the_bounds() -> None:
    """The scans that the tests of figures are drawn from are possible ones."""
    made = scans_made.measured(scans_made.places(2000))
    p = made["prob"].to_numpy(np.float64)
    assert (made["entropy"] >= least_entropy(p) - 1e-5).all()
    assert (made["entropy"] <= greatest_entropy(p, scans_made.VOCAB) + 1e-5).all()
