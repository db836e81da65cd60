"""Scans by turn against the same tokens with each turn as a row of its own: what must be equal."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scans_made
from pandas.testing import assert_frame_equal

from eaft_probe.analysis.aggregates import counted
from eaft_probe.analysis.stratified_sample import draw_sample
from eaft_probe.analysis.summary import summarize, worst_examples
from eaft_probe.analysis.token_join import joined_tokens
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import ScanError
from eaft_probe.scans.keys import EACH, TOGETHER, key_of, named_place, sortable
from eaft_probe.scans.scan import Scan

Frame = pandas.DataFrame
RULE = ConflictRule(3, 0.3)


@pytest.fixture(scope="module")
def tokens() -> Frame:
    return scans_made.measured(scans_made.by_turn(scans_made.places(900)))


@pytest.fixture(scope="module")
def pair(tokens: Frame, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scan, Scan]:
    """By turn, and with the turns numbered through as rows."""
    folder = tmp_path_factory.mktemp("scans")
    rows = tokens.assign(example=tokens.groupby(list(EACH)).ngroup())
    return (
        scans_made.write(folder / "each", tokens, rule=RULE, group=70, turns="each"),
        scans_made.write(folder / "rows", rows, rule=RULE, group=70),
    )


def test_a_key_sorts_as_its_columns() -> None:
    random = np.random.default_rng(0)
    most = {"example": 2**53 - 1, "turn": 2**15 - 1, "position": 2**31 - 1}
    columns = {n: np.append(random.integers(0, 5, 400), [m, m - 1, 0]) for n, m in most.items()}
    for key in (TOGETHER, EACH, (*TOGETHER, "position"), (*EACH, "position")):
        order = np.lexsort([columns[n] for n in reversed(key)])
        numbers = sortable(columns, key)
        assert (np.sort(numbers) == numbers[order]).all()
        places = {tuple(int(columns[n][i]) for n in key) for i in range(len(numbers))}
        assert len(np.unique(numbers)) == len(places)


def test_a_place_in_words() -> None:
    assert named_place((*EACH, "position"), [3, 1, 17]) == "example 3, turn 1, position 17"


def test_examples_say_whether_they_are_turns() -> None:
    tables = [{"turn": pa.array([1, 3], pa.int16())}, {"turn": pa.nulls(2, pa.int16())}, {}]
    keys = [key_of(pa.table({"example": [0, 0], **more})) for more in tables]
    assert keys == [EACH, TOGETHER, TOGETHER]


def test_a_manifest_says_it_too(pair: tuple[Scan, Scan], tokens: Frame, tmp_path: Path) -> None:
    each, rows = pair
    older = scans_made.write(tmp_path / "older", tokens, turns=None)
    assert [s.token_key for s in (each, rows, older)] == [
        ("example", "turn", "position"),
        ("example", "position"),
        ("example", "position"),
    ]
    assert each.renderings == rows.renderings > each.manifest["counts"]["examples"]
    assert "turn" not in older.examples()
    assert rows.examples()["turn"].isna().all()
    assert [*each.examples()["turn"]] == [*tokens.drop_duplicates(list(EACH))["turn"]]


def test_a_turn_that_is_missing_is_damage(tokens: Frame, tmp_path: Path) -> None:
    """Only where each turn is an example: else there is none."""
    scan = scans_made.write(tmp_path / "s", tokens, parts=1, turns="each")
    file = scan.part_files("examples")[0]
    table = pq.read_table(file, partitioning=None)
    at = table.schema.get_field_index("turn")
    none = pa.nulls(len(table), pa.int16())
    pq.write_table(table.set_column(at, table.schema.field(at), none), file)
    with pytest.raises(ScanError, match="turn has no value"):
        scans_made.resealed(scan)


def test_conflicts_stand_in_the_text_of_their_turn(pair: tuple[Scan, Scan]) -> None:
    each, rows = (s.conflicts().drop(columns="example") for s in pair)
    assert len(each) > 50
    assert_frame_equal(each, rows)


def test_a_token_of_no_text_is_named_by_its_turn(tokens: Frame, tmp_path: Path) -> None:
    scan = scans_made.write(tmp_path / "s", tokens, parts=1, turns="each")
    file = scan.part_files("examples")[0]
    pq.write_table(pq.read_table(file, partitioning=None).slice(1), file)
    with pytest.raises(ScanError, match="of example 0, turn 1, which has no such text"):
        Scan(scan.path, scan.manifest).flag(RULE)


@pytest.mark.parametrize("layout", [(3, 70, 2, 33), (1, None, 4, 7), (5, 13, 5, 13)])
def test_two_scans_join_by_turn(tokens: Frame, tmp_path: Path, layout: tuple[int, ...]) -> None:
    """Of each token that both have the columns of both, against a merge of the frames."""
    random = np.random.default_rng(1)
    mine = tokens[random.random(len(tokens)) < 0.8]
    other = tokens[random.random(len(tokens)) < 0.8].assign(logprob=np.float32(-1))
    a = scans_made.write(tmp_path / "a", mine, layout[0], group=layout[1], turns="each")
    b = scans_made.write(tmp_path / "b", other, layout[2], group=layout[3], turns="each")
    found = [
        Frame({**left, "other": right["logprob"]})
        for left, right in joined_tokens(a, b, ["logprob"], ["logprob"])
    ]
    wanted = mine.merge(other, on=list(a.token_key), suffixes=("", "_b"))
    got = pandas.concat(found, ignore_index=True)
    assert_frame_equal(
        got[[*a.token_key, "logprob", "other"]].astype(float),
        wanted[[*a.token_key, "logprob", "logprob_b"]]
        .rename(columns={"logprob_b": "other"})
        .astype(float),
    )


def test_rows_beyond_the_reach_of_one_number_join(tokens: Frame, tmp_path: Path) -> None:
    """Row and position in 64 bits hold 2^32 rows."""
    far = tokens[:300].assign(example=tokens["example"] + 2**52)
    pair = [scans_made.write(tmp_path / name, far, turns="each") for name in "ab"]
    assert sum(len(left["token_id"]) for left, _ in joined_tokens(*pair, [], [])) == len(far)


def test_another_token_is_named_by_its_turn(tokens: Frame, tmp_path: Path) -> None:
    a = scans_made.write(tmp_path / "a", tokens, turns="each")
    other = tokens.assign(token_id=tokens["token_id"].where(tokens.index != 30, 63))
    b = scans_made.write(tmp_path / "b", other, turns="each")
    e, t, p = tokens.loc[30, ["example", "turn", "position"]].astype(int)
    with pytest.raises(
        ScanError, match=f"at example {e}, turn {t}, position {p} the first has token"
    ):
        list(joined_tokens(a, b, [], []))


def test_tokens_out_of_order_are_refused(tokens: Frame, tmp_path: Path) -> None:
    """Sorted by row and position, as a scan of whole conversations is."""
    mixed = tokens.sort_values(["example", "position"], kind="stable")
    assert not mixed.index.equals(tokens.index)
    pair = [
        scans_made.write(tmp_path / n, t, turns="each") for n, t in (("a", tokens), ("b", mixed))
    ]
    with pytest.raises(ScanError, match="not sorted by example and turn and position"):
        list(joined_tokens(*pair, [], []))


def test_a_mix_is_refused(pair: tuple[Scan, Scan]) -> None:
    for a, b in (pair, pair[::-1]):
        with pytest.raises(ScanError, match=r"with --turns .* and .* --turns .*: their tokens"):
            list(joined_tokens(a, b, [], []))


SAME: list[Callable[[Scan], object]] = [
    lambda scan: np.round(counted(scan).overall(), 6).tolist(),
    lambda scan: counted(scan).roles(),
    lambda scan: [pair[:3] for pair in counted(scan).pairs(20)],
    lambda scan: {n: a.round(6).tolist() for n, a in counted(scan).by_position().items()},
    lambda scan: counted(scan).plane().counts.tolist(),
]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("of", SAME)
def test_counts_of_tokens_are_those_of_rows(
    pair: tuple[Scan, Scan], tmp_path: Path, kept: bool, of: Callable[[Scan], object]
) -> None:
    if kept:
        pair = tuple(scans_made.keeping(s, tmp_path / s.turns) for s in pair)
    assert of(pair[0]) == of(pair[1])


def test_examples_are_counted_as_rows(pair: tuple[Scan, Scan], tokens: Frame) -> None:
    found = summarize(pair[0])
    flagged = tokens[RULE(tokens.astype({"entropy": "float32", "prob": "float32"}))]
    assert found["examples"] == tokens["example"].nunique()
    assert found["examples_with_conflicts"] == flagged["example"].nunique()
    counts = Frame({"n": flagged.groupby("example").size(), "of": tokens.groupby("example").size()})
    counts = counts.dropna().reset_index().assign(share=lambda c: c["n"] / c["of"])
    order = counts.sort_values(["n", "share", "example"], ascending=[False, False, True])
    assert worst_examples(pair[0], 7) == [*order["example"][:7]]


def test_kept_tokens_are_of_their_turns(pair: tuple[Scan, Scan], tmp_path: Path) -> None:
    """A sample draws each turn's tokens for itself, and keeps the turns that have one."""
    some = scans_made.keeping(pair[0], tmp_path / "some", 0.05)
    tokens, examples = some.tokens(list(EACH)), some.examples()[list(EACH)]
    assert 0 < len(examples) < pair[0].renderings
    assert_frame_equal(tokens.drop_duplicates(ignore_index=True), examples)


def test_a_sample_has_places_of_each_turn(pair: tuple[Scan, Scan], tokens: Frame) -> None:
    found = draw_sample(pair[0], len(tokens), 0, ["logprob"])
    frame = Frame({n: found[n] for n in (*pair[0].token_key, "logprob")})
    wanted = tokens[[*pair[0].token_key, "logprob"]]
    assert_frame_equal(
        frame.sort_values(list(pair[0].token_key), ignore_index=True), wanted, check_dtype=False
    )
