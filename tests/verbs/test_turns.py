"""Verbs over scans by turn (--turns each), against the same tokens with each turn as a row."""

from pathlib import Path

import numpy as np
import pandas
import pytest
import scans_made
from pandas.testing import assert_frame_equal

from eaft_probe.analysis import exact_gradients
from eaft_probe.analysis.exact_gradients import FullGradients, Provenance, scan_identity
from eaft_probe.analysis.rank_correlation import EXACT
from eaft_probe.analysis.stratified_sample import draw_sample
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.data.batches import Window
from eaft_probe.errors import BadInput, ScanError
from eaft_probe.objectives.scan_columns import OF_BASE, scan_step, token_columns
from eaft_probe.scans.keys import EACH
from eaft_probe.scans.scan import Scan
from eaft_probe.verbs.compare import compare
from eaft_probe.verbs.gradients.gradients import _known
from eaft_probe.verbs.merge.merge import merge
from eaft_probe.verbs.train import scan_features

Frame = pandas.DataFrame
RULE = ConflictRule(3, 0.3)


@pytest.fixture(scope="module")
def tokens() -> Frame:
    return scans_made.measured(scans_made.by_turn(scans_made.places(700)))


@pytest.fixture(scope="module")
def tuned(tokens: Frame) -> Frame:
    again = scans_made.measured(tokens, 9)
    return again.assign(token_id=tokens["token_id"])


def as_rows(tokens: Frame) -> Frame:
    """Each turn a row of its own."""
    return tokens.assign(example=tokens.groupby(list(EACH)).ngroup())


def written(folder: Path, tokens: Frame, **how: object) -> tuple[Scan, Scan]:
    each = scans_made.write(folder / "each", tokens, rule=RULE, group=70, turns="each", **how)
    rows = scans_made.write(folder / "rows", as_rows(tokens), rule=RULE, group=70, **how)
    return each, rows


# --- compare ---


def test_a_comparison_is_that_of_the_turns(tokens: Frame, tuned: Frame, tmp_path: Path) -> None:
    pairs = zip(
        written(tmp_path / "a", tokens), written(tmp_path / "b", tuned, parts=2), strict=True
    )
    each, rows = (compare(a, b) for a, b in pairs)
    assert each.totals["tokens"] == len(tokens)
    assert_frame_equal(each.table, rows.table)


def test_a_mix_is_compared_as_wholes_alone(tokens: Frame, tmp_path: Path) -> None:
    each, rows = written(tmp_path, tokens)
    with pytest.raises(ScanError, match=r"--turns each and .* with --turns together: their tokens"):
        compare(each, rows, by="tokens")
    notes = compare(each, rows, by="distributions").notes
    assert any("A was made with --turns each, B with --turns together" in n for n in notes)


# --- merge ---


def test_a_merge_keeps_order_and_renumbers(tokens: Frame, tmp_path: Path) -> None:
    half = tokens["example"].iloc[350]
    first = tokens[tokens["example"] < half]
    second = tokens[tokens["example"] >= half].assign(example=lambda t: t["example"] - half)
    a = scans_made.write(tmp_path / "a", first, rule=RULE, source="a", turns="each")
    b = scans_made.write(tmp_path / "b", second, parts=2, rule=RULE, source="b", turns="each")
    merged = merge([a, b], tmp_path / "merged")
    after = int(first["example"].max()) + 1
    whole = pandas.concat([first, second.assign(example=second["example"] + after)])
    one = scans_made.write(tmp_path / "one", whole, rule=RULE, turns="each")
    assert merged.by_turn
    assert_frame_equal(merged.tokens(), one.tokens(), check_categorical=False)
    assert_frame_equal(merged.examples().drop(columns="source"), one.examples())
    assert_frame_equal(merged.conflicts(), one.conflicts())


def test_an_older_scan_merges_with_one_of_whole_rows(tokens: Frame, tmp_path: Path) -> None:
    older = scans_made.write(tmp_path / "a", tokens, source="a", turns=None)
    newer = scans_made.write(tmp_path / "b", tokens, source="b", turns="together")
    for number, pair in enumerate([(older, newer), (newer, older)]):
        merged = merge(pair, tmp_path / f"m{number}")
        assert not merged.by_turn
        assert merged.examples()["turn"].isna().all()


def test_a_mix_is_not_merged(tokens: Frame, tmp_path: Path) -> None:
    each = scans_made.write(tmp_path / "a", tokens, source="a", turns="each")
    older = scans_made.write(tmp_path / "b", tokens, source="b", turns=None)
    with pytest.raises(BadInput, match=r"differ in --turns \(each and together\)"):
        merge([each, older], tmp_path / "m")


# --- beside the rows of a run ---


def windows(tokens: Frame) -> list[tuple[int, int, Window, Frame]]:
    """(row, turn, window, its tokens) of every turn, in the order of the data."""
    made = []
    for (row, turn), own in tokens.groupby(list(EACH)):
        size = int(own["position"].max()) + 2
        ids, trained = np.full(size, -1), np.zeros(size, bool)
        ids[own["position"]], trained[own["position"]] = own["token_id"], True
        made.append((int(row), int(turn), Window(int(row), 0, ids, trained), own))
    return made


def test_each_turn_has_its_own_columns(tokens: Frame, tmp_path: Path) -> None:
    scan, _ = written(tmp_path, tokens)
    cursor = scan_features.Cursor(scan_features.for_objective(scan, tuple(OF_BASE)))
    for row, turn, window, own in windows(tokens):
        found = cursor.columns(row, turn, window)
        assert [*found["base_prob"][window.trained]] == [*own["prob"]]
        mean = -own["logprob"].astype(float).mean()
        assert found["base_mean_nll"][window.trained] == pytest.approx(mean)
        assert not found["base_prob"][~window.trained].any()


def test_a_turn_that_is_not_there_is_named(tokens: Frame, tmp_path: Path) -> None:
    scan, _ = written(tmp_path, tokens)
    row, turn, window, _ = windows(tokens)[2]
    read = scan_features.for_groups(scan)
    with pytest.raises(BadInput, match=f"holds no turn {turn + 1} of row {row} of the data"):
        scan_features.Cursor(read).columns(row, turn + 1, window)
    with pytest.raises(BadInput, match=f"holds no row {row} of the data"):
        scan_features.Cursor(read).columns(row, None, window)
    other = Window(row, 0, window.ids + 1, window.trained)
    with pytest.raises(BadInput, match=f"other tokens for turn {turn} of row {row} than"):
        scan_features.Cursor(read).columns(row, turn, other)


# --- the columns of a base scan ---


def test_base_columns_are_those_of_the_turns(tokens: Frame, tuned: Frame, tmp_path: Path) -> None:
    a, b = (written(tmp_path / n, t) for n, t in (("a", tokens), ("b", tuned)))
    names = ("prob", "base_prob", "base_mean_nll")
    base = pandas.concat(map(Frame, token_columns(a[0], names, b[0])), ignore_index=True)
    assert [*base["base_prob"]] == [*tuned["prob"]]
    means = -tuned["logprob"].astype(float).groupby([tuned[n] for n in EACH]).transform("mean")
    assert base["base_mean_nll"].to_numpy() == pytest.approx(means.to_numpy())
    with pytest.raises(ScanError, match="--turns"):
        list(token_columns(a[0], names, b[1]))
    with pytest.raises(ScanError, match="--turns"):
        scan_step(a[0], b[1], names).examples.mean(lambda c: c["mean_nll"])


# --- exact gradients ---


def gradients_of(scan: Scan, size: int = 60) -> FullGradients:
    sample = draw_sample(scan, size, 0, ["turn", "grad_logits"])
    norms = np.arange(1, size + 1, dtype=float)
    made = Provenance(scan_identity(scan), "model", None, "float32", 0, size, finished=True)
    exact_gradients.write(scan, sample, norms, made)
    return FullGradients.open(scan)


def test_gradients_have_the_place_of_their_turn(tokens: Frame, tmp_path: Path) -> None:
    scan, _ = written(tmp_path, tokens)
    table = gradients_of(scan).table
    assert list(table)[:3] == ["example", "turn", "position"]
    assert table["turn"].dtype == np.int16
    own = tokens.set_index([*scan.token_key]).loc[
        [*table[[*scan.token_key]].itertuples(index=False, name=None)]
    ]
    assert [*own["grad_logits"]] == [*table["grad_logits"]]
    sample = draw_sample(scan, 90, 0, ["turn"])
    known = _known(sample, FullGradients.open(scan), scan.token_key)
    assert [*known[:60]] == [*table[EXACT]]
    assert np.isnan(known[60:]).all()


def test_older_gradients_have_no_turn(tokens: Frame, tmp_path: Path) -> None:
    """They are read where rows are whole, and refused where each turn is an example."""
    each, rows = written(tmp_path, tokens)
    for scan in (rows, each):
        table = gradients_of(scan).table
        made = FullGradients.open(scan).made
        held = {n: c.to_numpy() for n, c in table.items() if n != "turn"}
        exact_gradients._write(scan, held, made)
        if scan is rows:
            assert_frame_equal(FullGradients.open(scan).table, table.drop(columns="turn"))
            continue
        with pytest.raises(ScanError, match="no column 'turn'"):
            FullGradients.open(scan)


def test_gradients_are_merged_by_turn(tokens: Frame, tmp_path: Path) -> None:
    pair = [scans_made.write(tmp_path / n, tokens, source=n, turns="each") for n in "ab"]
    tables = [gradients_of(scan).table for scan in pair]
    merged = FullGradients.open(merge(pair, tmp_path / "m")).table
    after = int(tokens["example"].max()) + 1
    shifted = [tables[0], tables[1].assign(example=tables[1]["example"] + after)]
    assert_frame_equal(merged, pandas.concat(shifted, ignore_index=True))
