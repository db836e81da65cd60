"""Two scans compared: numbers against plain float64 loops, which comparison applies, refusals."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import scans_made
import tiny
from rich.console import Console

import eaft_probe
from eaft_probe import Scan, compare, scan
from eaft_probe.analysis import bootstrap
from eaft_probe.cli import _run
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput, ScanError
from eaft_probe.view.terminal import show_comparison

RULE = ConflictRule(0.8, 0.25)
LAYOUTS = [(3, None, 3, None), (1, None, 4, 7), (5, 60, 2, 13)]  # parts and row groups of A, of B
COUNTS = ("tokens", "learned", "unchanged", "forgotten")
Frame = pandas.DataFrame


def nudged(tokens: Frame, seed: int = 7) -> Frame:
    """The same labels under a model that moved a little."""
    random = np.random.default_rng(seed)
    moved = tokens["logprob"] + random.normal(0.1, 0.9, len(tokens))
    logprob = np.minimum(moved, -1e-6).astype(np.float32)
    entropy = tokens["entropy"] * random.uniform(0.5, 1.3, len(tokens))
    return tokens.assign(
        logprob=logprob,
        prob=np.exp(logprob),
        entropy=entropy.astype(np.float32),
        kl_reference=random.exponential(0.1, len(tokens)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def tokens() -> Frame:
    return scans_made.measured(scans_made.places(1500))


@pytest.fixture(scope="module")
def tuned(tokens: Frame) -> Frame:
    return nudged(tokens)


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, tokens: Frame, tuned: Frame
) -> tuple[Scan, Scan]:
    folder = tmp_path_factory.mktemp("pair")
    return (
        scans_made.write(folder / "a", tokens, rule=RULE, model="base", without=["kl_reference"]),
        scans_made.write(folder / "b", tuned, rule=RULE, model="tuned"),
    )


@pytest.fixture(scope="module")
def theirs() -> Frame:
    """Tokens of other data."""
    return scans_made.measured(scans_made.places(700, 3), 4)


@pytest.fixture(scope="module")
def others(
    tmp_path_factory: pytest.TempPathFactory, tokens: Frame, theirs: Frame
) -> tuple[Scan, Scan]:
    folder = tmp_path_factory.mktemp("others")
    return (
        scans_made.write(folder / "a", tokens, rule=RULE),
        scans_made.write(folder / "b", theirs, rule=RULE, source="rollouts.jsonl"),
    )


# --- token by token ---


def conflict(row: Any) -> bool:
    return bool(row.entropy < np.float32(0.8) and row.prob < np.float32(0.25))


MEMBERS: dict[str, Callable[[Any], bool]] = {
    "conflict": conflict,
    "low": lambda row: row.entropy <= 0.5,
    "high": lambda row: row.entropy >= 2,
    "agreeing": lambda row: row.rank == 0,
    "all": lambda row: True,
}


def both(tokens: Frame, tuned: Frame) -> list[tuple[Any, Any]]:
    """The rows of both frames that stand in the same place."""
    there = {(r.example, r.position): r for r in tuned.itertuples()}
    found = ((r, there.get((r.example, r.position))) for r in tokens.itertuples())
    return [(mine, other) for mine, other in found if other is not None]


def expected(rows: list[tuple[Any, Any]], delta: float) -> dict[str, float]:
    """Counts and means of some tokens, one by one."""
    found: dict[str, float] = {"tokens": len(rows), "learned": 0, "unchanged": 0, "forgotten": 0}
    for mine, other in rows:
        change = float(other.logprob) - float(mine.logprob)
        if change > delta:
            found["learned"] += 1
        elif change < -delta:
            found["forgotten"] += 1
        else:
            found["unchanged"] += 1
    for name in COUNTS[1:]:
        found[f"{name}_share"] = found[name] / len(rows)
    for name, value in (
        ("nll", lambda r: -float(r.logprob)),
        ("prob", lambda r: float(r.prob)),
        ("entropy", lambda r: float(r.entropy)),
    ):
        before = math.fsum(value(mine) for mine, _ in rows) / len(rows)
        after = math.fsum(value(other) for _, other in rows) / len(rows)
        found[f"mean_{name}_a"], found[f"mean_{name}_b"] = before, after
        found[f"{name}_change"] = after - before
    found["kl_reference"] = math.fsum(float(o.kl_reference) for _, o in rows) / len(rows)
    return found


@pytest.mark.parametrize("delta", [math.log(2), 0.2, 3.0])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_table_equals_a_loop(
    tokens: Frame, tuned: Frame, tmp_path: Path, layout: tuple[Any, ...], delta: float
) -> None:
    a = scans_made.write(tmp_path / "a", tokens, parts=layout[0], group=layout[1], rule=RULE)
    b = scans_made.write(tmp_path / "b", tuned, parts=layout[2], group=layout[3], rule=RULE)
    found = compare(a, b, delta=delta)
    assert found.by == "tokens"
    table = found.table.set_index("group")
    assert list(table.index) == list(MEMBERS)
    rows = both(tokens, tuned)
    for group, inside in MEMBERS.items():
        wanted = expected([r for r in rows if inside(r[0])], delta)
        assert table.loc[group].to_dict() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert {n: found.totals[n] for n in wanted} == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_conflicts_are_resolved_remain_or_are_new(
    pair: tuple[Scan, Scan], tokens: Frame, tuned: Frame
) -> None:
    totals = compare(*pair).totals
    kinds = [(conflict(mine), conflict(other)) for mine, other in both(tokens, tuned)]
    for name, kind in (
        ("resolved", (True, False)),
        ("remaining", (True, True)),
        ("new", (False, True)),
    ):
        assert totals[f"conflicts_{name}"] == kinds.count(kind) > 0
    assert totals["conflicts_a"] == sum(a for a, _ in kinds)
    assert totals["conflicts_b"] == sum(b for _, b in kinds)


def test_a_scan_and_itself_are_unchanged(pair: tuple[Scan, Scan]) -> None:
    found = compare(pair[0], pair[0].path)
    assert found.totals["unchanged"] == found.totals["tokens"] == 1500
    assert (found.table[["learned", "forgotten", "nll_change"]] == 0).all(axis=None)
    assert found.totals["conflicts_new"] == found.totals["conflicts_resolved"] == 0


def test_exactly_delta_is_unchanged(tokens: Frame, tmp_path: Path) -> None:
    few = tokens[:4].assign(logprob=np.float32([-2, -2, -2, -2]))
    other = few.assign(logprob=np.float32([-1.5, -2.5, -1.25, -2.75]))
    pair = (scans_made.write(tmp_path / n, t, parts=1) for n, t in (("a", few), ("b", other)))
    totals = compare(*pair, delta=0.5).totals
    assert [totals[n] for n in COUNTS] == [4, 1, 2, 1]


def test_kl_is_told_where_b_has_it(pair: tuple[Scan, Scan]) -> None:
    assert "kl_reference" in compare(*pair).table
    back = compare(*reversed(pair))
    assert "kl_reference" not in back.table
    assert "kl_reference" not in back.summary()


def _limited(frame: Frame) -> Frame:
    return frame[frame["example"] < 9]


def _sampled(frame: Frame) -> Frame:
    return frame[frame["example"] % 3 == 1]


def _cut(frame: Frame) -> Frame:
    return frame[frame["position"] < 40]


def _last(frame: Frame) -> Frame:
    return frame[-1:]


def _whole(frame: Frame) -> Frame:
    return frame


@pytest.mark.parametrize("of_b", [_whole, _limited, _sampled, _cut, _last])
@pytest.mark.parametrize("of_a", [_whole, _sampled, _cut])
def test_what_only_one_scan_has_is_left_out_and_counted(
    tokens: Frame, tuned: Frame, tmp_path: Path, of_a: Any, of_b: Any
) -> None:
    mine, other = of_a(tokens), of_b(tuned)
    rows = both(mine, other)
    a = scans_made.write(tmp_path / "a", mine, parts=2, group=17, rule=RULE)
    b = scans_made.write(tmp_path / "b", other, parts=3, group=40, rule=RULE)
    if not rows:
        with pytest.raises(ScanError, match="no token in common"):
            compare(a, b)
        return
    found = compare(a, b)
    assert found.totals["tokens"] == len(rows)
    assert found.totals["tokens_only_a"] == len(mine) - len(rows)
    assert found.totals["tokens_only_b"] == len(other) - len(rows)
    wanted = expected(rows, math.log(2))
    assert {n: found.totals[n] for n in wanted} == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    said = f"{len(mine) - len(rows):,} are only in A, {len(other) - len(rows):,} only in B"
    assert any(said in note for note in found.notes) == (len(rows) < max(len(mine), len(other)))


def test_an_empty_group_has_no_mean(tokens: Frame, tuned: Frame, tmp_path: Path) -> None:
    rule = ConflictRule(0, 0.1)
    pair = [scans_made.write(tmp_path / n, t, rule=rule) for n, t in (("a", tokens), ("b", tuned))]
    found = compare(*pair)
    row = found.table.set_index("group").loc["conflict"]
    assert (row[list(COUNTS)] == 0).all()
    assert row.drop(list(COUNTS)).isna().all()
    assert found.summary()["groups"]["conflict"]["nll_change"] is None


def test_one_token_is_enough(tokens: Frame, tuned: Frame, tmp_path: Path) -> None:
    pair = [
        scans_made.write(tmp_path / n, t[:1], parts=1) for n, t in (("a", tokens), ("b", tuned))
    ]
    assert compare(*pair).totals["tokens"] == 1


def test_one_rule_holds_for_both(tokens: Frame, tuned: Frame, tmp_path: Path) -> None:
    a = scans_made.write(tmp_path / "a", tokens, rule=RULE)
    b = scans_made.write(tmp_path / "b", tuned, rule=ConflictRule(2, 0.5))
    found = compare(a, b)
    assert found.rule == RULE
    assert found.totals["conflicts_b"] == sum(map(conflict, tuned.itertuples()))
    assert any("another rule (entropy < 2" in note for note in found.notes)


# --- which of the two, and what is refused ---


def edited(scan: Scan, change: Callable[[dict[str, Any]], None]) -> Scan:
    manifest = json.loads((scan.path / "manifest.json").read_text())
    change(manifest)
    (scan.path / "manifest.json").write_text(json.dumps(manifest))
    return Scan.open(scan.path)


def test_the_fingerprint_decides(
    pair: tuple[Scan, Scan], others: tuple[Scan, Scan], tokens: Frame, tuned: Frame, tmp_path: Path
) -> None:
    assert "the same data (rows.jsonl), compared token by token" in compare(*pair).said
    found = compare(*others)
    assert found.by == "distributions"
    assert found.said.startswith(
        "different data (rows.jsonl and rollouts.jso), compared as distrib"
    )
    again = scans_made.write(tmp_path / "b", tuned, rule=RULE, fingerprint="rows.parquet")
    assert compare(pair[0], again).by == "distributions"
    forced = compare(pair[0], again, by="tokens")
    pandas.testing.assert_frame_equal(forced.table, compare(*pair).table)
    assert "--by tokens" in forced.said
    assert compare(*pair, by="distributions").by == "distributions"


@pytest.mark.parametrize("place", [0, 700, -1])
def test_another_token_in_one_place_is_refused(
    pair: tuple[Scan, Scan], tuned: Frame, tmp_path: Path, place: int
) -> None:
    ids = tuned["token_id"].copy()
    ids.iloc[place] += 1
    row = tuned.iloc[place]
    b = scans_made.write(tmp_path / "b", tuned.assign(token_id=ids), parts=2, group=50)
    where = f"at example {row['example']:.0f}, position {row['position']:.0f} the first has token"
    with pytest.raises(ScanError, match=where) as caught:
        compare(pair[0], b)
    assert "--by distributions" in str(caught.value)
    assert _run(["compare", str(pair[0].path), str(b.path)]) == 2
    assert compare(pair[0], b, by="distributions").by == "distributions"


def test_another_template_is_refused_where_it_is_used(
    pair: tuple[Scan, Scan], tuned: Frame, tmp_path: Path
) -> None:
    b = scans_made.write(tmp_path / "b", tuned)
    b = edited(b, lambda m: m.update(chat_template="other"))
    with pytest.raises(ScanError, match="another chat template"):
        compare(pair[0], b)
    plain = scans_made.write(tmp_path / "a", tuned)
    plain, b = (edited(s, lambda m: m["data"].update(format="text")) for s in (plain, b))
    assert compare(plain, b).totals["tokens"] == 1500


def test_other_windows_of_a_text_are_said(tuned: Frame, tmp_path: Path) -> None:
    pair = [scans_made.write(tmp_path / name, tuned) for name in "ab"]
    for made, longest in zip(pair, (64, 128), strict=True):
        edited(made, lambda m, n=longest: m["model"].update(max_length=n))
        edited(made, lambda m: m["data"].update(format="text"))
    pair = [Scan.open(made.path) for made in pair]
    assert any("windows of 64 tokens in A and 128" in note for note in compare(*pair).notes)


def test_tokens_out_of_order_are_refused(
    pair: tuple[Scan, Scan], tuned: Frame, tmp_path: Path
) -> None:
    mixed = tuned.iloc[[1, 0, *range(2, len(tuned))]]
    with pytest.raises(ScanError, match="not sorted"):
        compare(pair[0], scans_made.write(tmp_path / "b", mixed))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"delta": 0}, "--delta must be finite and at least 0.0001"),
        ({"delta": -1}, "--delta"),
        ({"delta": "inf"}, "--delta"),
        ({"delta": "nan"}, "--delta"),
        ({"by": "examples"}, "--by"),
        ({"seed": -1}, "--seed"),
        ({"dleta": 1}, "did you mean 'delta'"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    pair: tuple[Scan, Scan], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        compare(*pair, **settings)


def test_a_scan_without_a_token_is_refused(
    pair: tuple[Scan, Scan], tokens: Frame, tmp_path: Path
) -> None:
    empty = scans_made.write(tmp_path / "s", tokens[:0], parts=1)
    for a, b in ((pair[0], empty), (empty, pair[0])):
        with pytest.raises(BadInput, match="no scored token"):
            compare(a, b)
    with pytest.raises(ScanError, match="no such folder"):
        compare(pair[0], tmp_path / "nowhere")


# --- as distributions ---


def quantities(rows: list[Any]) -> dict[str, float]:
    """Shares and means of some tokens, one by one."""
    found = {
        f"{name}_share": sum(map(inside, rows)) / len(rows)
        for name, inside in MEMBERS.items()
        if name != "all"
    }
    found["mean_nll"] = math.fsum(-float(r.logprob) for r in rows) / len(rows)
    found["mean_entropy"] = math.fsum(float(r.entropy) for r in rows) / len(rows)
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_quantities_equal_a_loop(
    tokens: Frame, theirs: Frame, tmp_path: Path, layout: tuple[Any, ...]
) -> None:
    a = scans_made.write(tmp_path / "a", tokens, parts=layout[0], group=layout[1], rule=RULE)
    b = scans_made.write(
        tmp_path / "b", theirs, parts=layout[2], group=layout[3], rule=RULE, source="x"
    )
    found = compare(a, b)
    table = found.table.set_index("quantity")
    mine, other = (quantities(list(t.itertuples())) for t in (tokens, theirs))
    assert list(table.index) == list(mine)
    for name in mine:
        row = table.loc[name]
        assert row["a"] == pytest.approx(mine[name], rel=1e-9)
        assert row["b"] == pytest.approx(other[name], rel=1e-9)
        assert row["difference"] == pytest.approx(mine[name] - other[name], abs=1e-9)
        assert row["ratio"] == pytest.approx(mine[name] / other[name], rel=1e-9)
    assert found.totals["examples_a"] == tokens["example"].nunique()
    assert found.totals["examples_b"] == theirs["example"].nunique()


def resampled(tokens: Frame, stream: int) -> list[dict[str, float]]:
    """2,000 times as many examples as there are, with replacement, one resample after the other."""
    sums = []
    for _, rows in tokens.groupby("example"):
        made = list(rows.itertuples())
        sums.append([len(made), *(v * len(made) for v in quantities(made).values())])
    names, draw = list(quantities(made)), np.random.default_rng([0, stream])
    found = []
    for _ in range(2000):
        times = draw.multinomial(len(sums), [1 / len(sums)] * len(sums))
        added = [
            math.fsum(t * s[i] for t, s in zip(times, sums, strict=True) if t)
            for i in range(len(names) + 1)
        ]
        found.append({n: added[i] / added[0] for i, n in enumerate(names, 1)})
    return found


def middle(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[49], ordered[-50]


def test_intervals_are_those_of_a_loop_over_resamples(
    others: tuple[Scan, Scan], tokens: Frame, theirs: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = compare(*others).table.set_index("quantity")
    draws = list(zip(resampled(tokens, 0), resampled(theirs, 1), strict=True))
    for name in table.index:
        for side, column in enumerate("ab"):
            low, high = middle([pair[side][name] for pair in draws])
            assert table.loc[name, f"{column}_low"] == pytest.approx(low, rel=1e-9)
            assert table.loc[name, f"{column}_high"] == pytest.approx(high, rel=1e-9)
        low, high = middle([a[name] - b[name] for a, b in draws])
        assert table.loc[name, "difference_low"] == pytest.approx(low, abs=1e-9)
        assert table.loc[name, "difference_high"] == pytest.approx(high, abs=1e-9)
        low, high = middle([a[name] / b[name] for a, b in draws])
        assert table.loc[name, "ratio_low"] == pytest.approx(low, rel=1e-9)
        assert table.loc[name, "ratio_high"] == pytest.approx(high, rel=1e-9)
    pandas.testing.assert_frame_equal(compare(*others).table.set_index("quantity"), table)
    monkeypatch.setattr(bootstrap, "WEIGHTS", 100)  # drawn in other pieces
    pandas.testing.assert_frame_equal(
        compare(*others).table.set_index("quantity"), table, rtol=1e-12
    )
    assert not compare(*others, seed=1).table.set_index("quantity").equals(table)


def test_intervals_are_as_wide_as_the_spread_over_examples_says(
    tmp_path: Path,
) -> None:
    """By the linearised variance of a ratio of sums, with many examples."""
    made = [scans_made.measured(scans_made.places(6000, s, trained=8), s + 1) for s in (0, 5)]
    pair = [
        scans_made.write(tmp_path / str(i), t, rule=RULE, source=str(i)) for i, t in enumerate(made)
    ]
    row = compare(*pair).table.set_index("quantity").loc["mean_nll"]
    variance = 0.0
    for frame in made:
        nll = -frame["logprob"].astype(np.float64)
        residual = (nll - nll.mean()).groupby(frame["example"]).sum()
        variance += (residual**2).sum() / len(frame) ** 2
    width = (row["difference_high"] - row["difference_low"]) / 2
    assert width == pytest.approx(1.96 * math.sqrt(variance), rel=0.08)
    assert row["difference_low"] < row["difference"] < row["difference_high"]


def test_a_difference_of_tokens_of_few_examples_is_not_taken_for_sure(
    tokens: Frame, tmp_path: Path
) -> None:
    """Ten long examples are ten draws: copies of a token in one example narrow nothing."""
    few = tokens.iloc[::60][:20].assign(example=range(20), position=5, turn=1)
    many = few.loc[few.index.repeat(50)].assign(position=np.tile(np.arange(50), 20))
    widths = []
    for name, frame in (("few", few), ("many", many)):
        a = scans_made.write(tmp_path / f"{name}a", frame, rule=RULE)
        b = scans_made.write(tmp_path / f"{name}b", frame, rule=RULE, source="b")
        table = compare(a, b).table.set_index("quantity")
        widths.append(table.loc["mean_nll", "difference_high"])
    assert widths[0] == pytest.approx(widths[1])


def test_many_examples_are_resampled_in_bunches(
    others: tuple[Scan, Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = compare(*others)
    monkeypatch.setattr(bootstrap, "BUNCHES", 23)  # fewer than the examples of A
    other = compare(*others)
    assert one.totals == other.totals
    pandas.testing.assert_frame_equal(one.table[["a", "b"]], other.table[["a", "b"]])
    widths = [f.table["difference_high"] - f.table["difference_low"] for f in (one, other)]
    np.testing.assert_allclose(widths[1], widths[0], rtol=0.5)


def test_bunches_hold_every_example_once(
    others: tuple[Scan, Scan], tokens: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def values(columns: Any) -> Any:
        return np.stack([np.ones(len(columns["prob"])), columns["example"].astype(float)])

    monkeypatch.setattr(bootstrap, "BUNCHES", 7)
    found, examples = bootstrap.sums_by_example(others[0], ["prob"], values)
    wanted = np.zeros((7, 2))
    for place, (example, rows) in enumerate(tokens.groupby("example")):
        wanted[place % 7] += len(rows), len(rows) * example
    np.testing.assert_allclose(found, wanted)
    assert examples == tokens["example"].nunique()


def test_too_few_examples_have_no_interval(
    others: tuple[Scan, Scan], theirs: Frame, tmp_path: Path
) -> None:
    few = theirs[theirs["example"].isin(theirs["example"].unique()[:9])]
    for pair in (
        (others[0], scans_made.write(tmp_path / "b", few, source="few")),
        (scans_made.write(tmp_path / "a", few, source="few"), others[0]),
    ):
        found = compare(*pair)
        assert found.table.filter(like="_low").isna().all(axis=None)
        assert np.isfinite(found.table[["a", "b", "difference"]]).all(axis=None)
        assert any("no intervals" in n and "at least 10 examples" in n for n in found.notes)


def test_without_conflicts_there_is_no_ratio(theirs: Frame, tokens: Frame, tmp_path: Path) -> None:
    rule = ConflictRule(0, 0)
    none = scans_made.write(tmp_path / "a", tokens, rule=rule, source="a")
    none_either = scans_made.write(tmp_path / "b", theirs, rule=rule, source="b")
    row = compare(none, none_either).summary()["quantities"]["conflict_share"]
    assert (row["a"], row["difference"], row["difference_high"]) == (0, 0, 0)
    assert row["ratio"] is row["ratio_low"] is row["ratio_high"] is None
    calm = theirs.assign(entropy=np.float32(5), rank=1)
    some = scans_made.write(tmp_path / "c", tokens, rule=RULE, source="c")
    row = compare(some, scans_made.write(tmp_path / "d", calm, source="d")).table.iloc[0]
    assert row["ratio"] == row["ratio_high"] == math.inf


def test_other_models_are_said(others: tuple[Scan, Scan], theirs: Frame, tmp_path: Path) -> None:
    assert not any("models differ" in n for n in compare(*others).notes)
    b = edited(
        scans_made.write(tmp_path / "b", theirs, source="x", model="other"),
        lambda m: m["model"].update(identity="other"),
    )
    assert any("models differ too (made and other)" in n for n in compare(others[0], b).notes)


def test_ends_of_intervals_reach_infinity_and_give_up_at_nan() -> None:
    values = np.concatenate([np.arange(1900.0), np.full(100, np.inf)])
    assert bootstrap.interval(values) == (49.0, math.inf)
    assert all(map(math.isnan, bootstrap.interval(np.append(values, np.nan))))


# --- the command ---


def _strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_json_and_gates(
    pair: tuple[Scan, Scan], others: tuple[Scan, Scan], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(s.path) for s in pair]
    assert _run(["compare", *folders, "--json", "--delta", "0.3"]) == 0
    found = _strict(capsys.readouterr().out)
    made = compare(*pair, delta=0.3)
    assert found == json.loads(json.dumps(made.summary()))
    assert found["learned"] == made.totals["learned"]
    share = made.table.set_index("group").loc["agreeing", "forgotten_share"]
    for gate, status in (
        ("forgotten>0", 3),
        ("forgotten<0", 0),
        (f"groups.agreeing.forgotten_share>{share - 1e-9:.12f}", 3),
        (f"groups.agreeing.forgotten_share>{share + 1e-9:.12f}", 0),
        ("forgoten>1", 2),
        ("groups.agreeing>1", 2),
    ):
        assert _run(["compare", *folders, "--delta", "0.3", "--fail-if", gate]) == status, gate
    assert "groups.conflict.tokens and similar" in capsys.readouterr().err
    folders = [str(s.path) for s in others]
    assert (
        _run(["compare", *folders, "--json", "--fail-if", "quantities.conflict_share.ratio>0"]) == 3
    )
    assert _strict(capsys.readouterr().out)["by"] == "distributions"


def test_json_without_conflicts_is_json(
    tokens: Frame, theirs: Frame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, frame in (("a", tokens), ("b", theirs)):
        scans_made.write(tmp_path / name, frame, rule=ConflictRule(0, 0), source=name)
    assert _run(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    _strict(capsys.readouterr().out)
    assert _run(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert "0 %" in shown
    assert "times as frequent" not in shown


def test_the_terminal_shows_what_the_json_has(
    pair: tuple[Scan, Scan], others: tuple[Scan, Scan], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["compare", *(str(s.path) for s in pair)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    totals = compare(*pair).totals
    assert "the same data (rows.jsonl), compared token by token" in said
    for name in ("learned", "unchanged", "forgotten"):
        assert f"{totals[name]:,} {name} ({100 * totals[f'{name}_share']:.2f} %)" in said
    for name in ("resolved", "remaining", "new"):
        assert f"{totals[f'conflicts_{name}']:,} {name}" in said
    assert f"all {totals['kl_reference']:.3f}" in said
    assert _run(["compare", *(str(s.path) for s in others)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    row = compare(*others).table.iloc[0]
    assert f"{row['ratio']:.3f} times as frequent in A as in B" in said
    assert f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}" in said


def test_a_config_and_the_command_line(
    pair: tuple[Scan, Scan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(s.path) for s in pair]
    (tmp_path / "c.yaml").write_text("delta: 3\n")
    for more, delta in (([], 3), (["--delta", "1"], 1)):
        assert (
            _run(["compare", *folders, "--config", str(tmp_path / "c.yaml"), "--json", *more]) == 0
        )
        assert json.loads(capsys.readouterr().out)["delta"] == delta
    (tmp_path / "c.yaml").write_text("dleta: 3\n")
    assert _run(["compare", *folders, "--config", str(tmp_path / "c.yaml")]) == 2


@pytest.mark.parametrize("by", ["tokens", "distributions"])
def test_hostile_names_are_shown_not_obeyed(
    tokens: Frame, tuned: Frame, tmp_path: Path, by: str
) -> None:
    name = "\x1b[2J [red]x[/red] \u202e\u2028 \0"
    named = {"rule": RULE, "source": name, "model": name}
    pair = [scans_made.write(tmp_path / n, t, **named) for n, t in (("a", tokens), ("b", tuned))]
    pair = [edited(s, lambda m: m["config"].update(reference=name)) for s in pair]
    out = io.StringIO()
    show_comparison(Console(file=out, width=300), compare(*pair, by=by).summary())
    assert "[red]x[/red]" in out.getvalue()
    assert not set("\x1b\u202e\u2028\0") & set(out.getvalue())


def test_the_public_name_is_the_function() -> None:
    assert eaft_probe.compare.__module__ == "eaft_probe.verbs.compare"


def test_a_comparison_is_frozen(pair: tuple[Scan, Scan]) -> None:
    with pytest.raises(AttributeError):
        compare(*pair).by = "distributions"  # type: ignore[misc]


# --- scans of real models ---


def test_real_scans_under_two_models(
    model_folder: str, stories: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": f"What of {i}?", "answer": f"The fox says {i} and no more."} for i in range(12)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    tuned = tmp_path / "tuned"
    tiny.build("llama-tied", max_position_embeddings=1024).save_pretrained(tuned)
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 1024
    tokenizer.save_pretrained(tuned)
    a = scan(file, tmp_path / "a", model=model_folder)
    b = scan(
        file, tmp_path / "b", model=str(tuned), limit=7, rows_per_unit=3, reference=model_folder
    )
    found = compare(a, b)
    mine, other = (s.tokens(["example", "position", "token_id", "logprob"]) for s in (a, b))
    joined = mine.merge(other, on=["example", "position", "token_id"])
    change = joined["logprob_y"].astype(float) - joined["logprob_x"]
    assert found.totals["tokens"] == len(joined) == len(other)
    assert found.totals["tokens_only_a"] == len(mine) - len(joined) > 0
    assert found.totals["learned"] == (change > math.log(2)).sum()
    assert found.totals["nll_change"] == pytest.approx(-change.mean())
    assert found.summary()["reference"] == Path(model_folder).name
    other_tokenizer = scan(file, tmp_path / "c", model=stories)
    capsys.readouterr()
    assert _run(["compare", str(a.path), str(other_tokenizer.path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--by distributions" in error
    assert compare(a, other_tokenizer, by="distributions").totals["examples_b"] == 12
