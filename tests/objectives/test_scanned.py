"""A finished scan as a step: joined with its base, its statistics those of the whole frame."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import scans_made

from eaft_probe.errors import BadInput, MissingColumn, ScanError
from eaft_probe.objectives.gates import OBJECTIVES, Objective, objective
from eaft_probe.objectives.scan_columns import (
    OF_BASE,
    Chunked,
    open_base,
    resolved,
    scan_step,
    token_columns,
)
from eaft_probe.scans.scan import Scan

LAYOUTS = [(1, None), (3, None), (3, 7), (9, None)]  # parts, tokens of a row group


@pytest.fixture(scope="module")
def own() -> pandas.DataFrame:
    return scans_made.measured(scans_made.places(600))


@pytest.fixture(scope="module")
def based(own: pandas.DataFrame) -> pandas.DataFrame:
    """The same labels under another model."""
    return scans_made.measured(own, 7, follow=False)


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def pair(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    own: pandas.DataFrame,
    based: pandas.DataFrame,
) -> tuple[Scan, Scan]:
    return written(tmp_path_factory.mktemp("pair"), own, based, request.param)


def written(
    folder: Path, own: pandas.DataFrame, based: pandas.DataFrame, layout: tuple[int, int | None]
) -> tuple[Scan, Scan]:
    parts, group = layout
    return (
        scans_made.write(folder / "own", own, parts=parts, group=group),
        scans_made.write(folder / "base", based, parts=parts, group=group),
    )


@pytest.fixture
def scan(tmp_path: Path, own: pandas.DataFrame) -> Scan:
    return scans_made.write(tmp_path / "own", own)


def read(scan: Scan, names: list[str], base: Scan | None = None) -> pandas.DataFrame:
    pieces = [pandas.DataFrame(p) for p in token_columns(scan, names, base)]
    return pandas.concat(pieces, ignore_index=True)


def mean_nll(tokens: pandas.DataFrame) -> pandas.Series:
    """By example, from the tokens."""
    return (-tokens["logprob"].astype(np.float64)).groupby(tokens["example"]).mean()


# --- columns ---


def test_base_columns_stand_beside_their_own_tokens(
    pair: tuple[Scan, Scan], own: pandas.DataFrame, based: pandas.DataFrame
) -> None:
    found = read(pair[0], ["prob", "example", "entropy", *OF_BASE], pair[1])
    for name in ("prob", "example", "entropy"):
        np.testing.assert_array_equal(found[name], own[name])
    np.testing.assert_array_equal(found["base_prob"], based["prob"])
    np.testing.assert_array_equal(found["reference_logprob"], based["logprob"])
    wanted = based["example"].map(mean_nll(based))
    np.testing.assert_allclose(found["base_mean_nll"], wanted, rtol=1e-6)


def test_columns_come_alone_and_in_order(pair: tuple[Scan, Scan]) -> None:
    for names in (["prob"], ["base_prob"], ["logprob", "reference_logprob"], ["conflict", "prob"]):
        assert list(read(pair[0], names, pair[1])) == [*names, "weight"]


def test_columns_of_whole_examples_do_not_end_at_a_row_group(
    pair: tuple[Scan, Scan], own: pandas.DataFrame, based: pandas.DataFrame
) -> None:
    found = read(pair[0], ["base_logprob", "nll_fall", "excess_above"], pair[1])
    fall = own["example"].map(mean_nll(based) - mean_nll(own))
    np.testing.assert_allclose(found["nll_fall"], fall, rtol=1e-5)
    excess = based["logprob"].astype(np.float64) - own["logprob"]
    ranks = excess.groupby(own["example"]).rank(method="max", pct=True)
    np.testing.assert_allclose(found["excess_above"], 1 - ranks, atol=1e-6)
    assert list(found) == ["base_logprob", "nll_fall", "excess_above", "weight"]


@pytest.mark.parametrize("tokens", [5, 10, 49])
def test_rho_keeps_its_share_of_an_example_and_not_a_token_more(
    tmp_path: Path, tokens: int
) -> None:
    own = scans_made.measured(scans_made.places(600)).iloc[:tokens]
    own = own.assign(example=0, position=np.arange(tokens))
    scan, base = (
        scans_made.write(tmp_path / n, own.assign(logprob=values.astype(np.float32)))
        for n, values in (("own", -np.arange(tokens)), ("base", -np.ones(tokens)))
    )
    for kept in range(1, tokens):
        rho = resolved(objective("rho", {"keep": kept / tokens, "rank": "example"}), scan, base)
        assert sum(rho(c).sum() for c in token_columns(scan, rho.reads, base)) == kept


def test_without_a_base_the_scan_is_its_own(scan: Scan, own: pandas.DataFrame) -> None:
    found = read(scan, ["base_prob", "base_mean_nll"])
    np.testing.assert_array_equal(found["base_prob"], own["prob"])
    np.testing.assert_allclose(found["base_mean_nll"], own["example"].map(mean_nll(own)), rtol=1e-6)


def test_a_reference_that_is_not_there_is_asked_for(scan: Scan) -> None:
    with pytest.raises(BadInput, match="--base-scan DIR"):
        read(scan, ["logprob", "reference_logprob"])
    with pytest.raises(BadInput, match="--base-scan DIR"):
        resolved(objective("rho"), scan, None)


def test_a_missing_column_is_named(tmp_path: Path, own: pandas.DataFrame) -> None:
    scan = scans_made.write(tmp_path / "s", own, without=["entropy_top20"])
    with pytest.raises(MissingColumn, match="rescan with --statistics entropy_top20"):
        read(scan, ["entropy_top20"])
    with pytest.raises(MissingColumn, match="entropy_top20"):
        read(scan, ["entropy_top20", "base_prob"])


def test_an_empty_part_is_joined_too(
    tmp_path: Path, own: pandas.DataFrame, based: pandas.DataFrame
) -> None:
    own, based = (t[t["example"] == 0] for t in (own, based))
    scan, base = (scans_made.write(tmp_path / n, t, parts=3) for n, t in (("a", own), ("b", based)))
    np.testing.assert_array_equal(read(scan, ["base_prob"], base)["base_prob"], based["prob"])


# --- a base of other tokens ---


def _shifted(tokens: pandas.DataFrame) -> pandas.DataFrame:
    return tokens.assign(position=tokens["position"] + 1)


def _relabelled(tokens: pandas.DataFrame) -> pandas.DataFrame:
    other = tokens["token_id"].copy()
    other.iloc[-1] = (other.iloc[-1] + 1) % scans_made.VOCAB
    return tokens.assign(token_id=other)


def _renumbered(tokens: pandas.DataFrame) -> pandas.DataFrame:
    return tokens.assign(example=tokens["example"] + 1)


def _cut(tokens: pandas.DataFrame) -> pandas.DataFrame:
    return tokens.iloc[:-1]


@pytest.mark.parametrize("change", [_shifted, _relabelled, _renumbered, _cut])
@pytest.mark.parametrize("name", ["stm", "flow", "rho"])
def test_a_base_of_other_tokens_is_refused(
    scan: Scan,
    based: pandas.DataFrame,
    tmp_path: Path,
    name: str,
    change: Callable[[pandas.DataFrame], pandas.DataFrame],
) -> None:
    base = scans_made.write(tmp_path / "base", change(based))
    with pytest.raises(ScanError, match="do not contain the same tokens"):
        read(scan, list(objective(name).reads), base)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("name", ["stm", "rho"])
def test_a_base_in_other_units_is_refused(
    scan: Scan, based: pandas.DataFrame, tmp_path: Path, name: str, parts: int
) -> None:
    base = scans_made.write(tmp_path / "base", based, parts=parts)
    with pytest.raises(ScanError, match="in the same units"):
        read(scan, list(objective(name).reads), base)


def test_a_folder_without_a_scan_is_no_base(tmp_path: Path) -> None:
    assert open_base(None) is None
    with pytest.raises(ScanError, match="no such folder"):
        open_base(tmp_path / "nowhere")


# --- the whole scan as a step ---


def test_means_and_quantiles_are_those_of_the_whole_frame(
    pair: tuple[Scan, Scan], own: pandas.DataFrame, based: pandas.DataFrame
) -> None:
    step = scan_step(*pair, ("entropy", "base_prob"))
    product = own["entropy"] * based["prob"]

    def of(columns: Any) -> Any:
        return columns["entropy"] * columns["base_prob"]

    assert step.tokens.mean(of) == pytest.approx(product.astype(np.float64).mean(), rel=1e-12)
    for at in (0.0, 0.1, 0.5, 0.999, 1.0):
        wanted = np.quantile(product.to_numpy(np.float64), at)
        assert step.tokens.quantile(of, at) == pytest.approx(wanted, rel=1e-12)


def test_examples_count_once_however_long(
    pair: tuple[Scan, Scan], own: pandas.DataFrame, based: pandas.DataFrame
) -> None:
    step = scan_step(*pair, ("prob",))
    for column, tokens in (("mean_nll", own), ("base_mean_nll", based)):
        means = mean_nll(tokens)
        found = step.examples.mean(lambda c, column=column: c[column])
        assert found == pytest.approx(means.mean(), rel=1e-6)
        median = step.examples.quantile(lambda c, column=column: c[column], 0.5)
        assert median == pytest.approx(means.median(), rel=1e-6)


def test_a_sum_of_float32_does_not_lose_its_tail() -> None:
    piece = {"x": np.full(1 << 20, 0.1, np.float32), "weight": np.ones(1 << 20)}
    many = Chunked(lambda: iter([piece] * 20))
    assert many.mean(lambda c: c["x"]) == pytest.approx(float(np.float32(0.1)), rel=1e-12)


@pytest.fixture(scope="module")
def laid_out(
    tmp_path_factory: pytest.TempPathFactory, own: pandas.DataFrame, based: pandas.DataFrame
) -> list[tuple[Scan, Scan]]:
    """The scan and its base in one part, and in three of small row groups."""
    return [written(tmp_path_factory.mktemp("pair"), own, based, LAYOUTS[i]) for i in (0, 2)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_s_gates_do_not_depend_on_the_parts(
    laid_out: list[tuple[Scan, Scan]], name: str
) -> None:
    found = []
    for scan, base in laid_out:
        frozen = resolved(objective(name), scan, base)
        found.append(np.concatenate([frozen(c) for c in token_columns(scan, frozen.reads, base)]))
    assert len(found[0]) == 600
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_a_figure_s_step_is_the_whole_scan(scan: Scan, own: pandas.DataFrame) -> None:
    """talr: the median of the examples' mean nll, to the power by hand."""
    frozen: Objective = resolved(objective("talr"), scan, None)
    tau = mean_nll(own).median()
    wanted = np.maximum(np.exp(own["logprob"].astype(np.float64) / tau), 0.01)
    found = [frozen(c) for c in token_columns(scan, frozen.reads)]
    np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-5)
