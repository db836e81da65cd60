"""Scans that keep some of their tokens: every number as if all were there, or a refusal."""

import json
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scans_made
import tiny
from pandas.testing import assert_frame_equal

from eaft_probe import Scan, compare, plots, scan
from eaft_probe.analysis import partial_aggregates as totals_module
from eaft_probe.analysis.aggregates import OfTokens, OfTotals
from eaft_probe.analysis.histogram2d import CELLS
from eaft_probe.analysis.partial_aggregates import added, added_up, sums_of, table_of
from eaft_probe.analysis.summary import summarize
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.quantiles import TOO_LOW, quantiles, quantiles_within, upper_bits
from eaft_probe.errors import BadInput, ScanError
from eaft_probe.objectives.scan_columns import scan_step
from eaft_probe.scans.part_writer import TOTALS, part_file, sha256, write_parquet
from eaft_probe.verbs.estimate.estimate import estimate
from eaft_probe.verbs.export.export import export
from eaft_probe.verbs.gradients.gradients import gradients
from eaft_probe.verbs.merge.merge import merge
from eaft_probe.verbs.scan import finish
from eaft_probe.verbs.scan import fold_totals as folding
from eaft_probe.verbs.scan.score_unit import Scorer
from eaft_probe.view.report.report import collect, report

scanning = import_module("eaft_probe.verbs.scan.scan")  # `verbs.scan` is the function, too
RULE = {"entropy_below": 4.6, "prob_below": 0.002}  # a random model is sure of little
WORDS = "the cat sat on a mat and then it ran over hills to see what was there".split()  # noqa: SIM905
WHOLE = ("kept_tokens", "path", "entropy_quantiles", "prob_quantiles")  # what may differ


def line(number: int) -> str:
    """A row of one or two turns; some cannot be scored."""
    if number % 9 == 4:
        return "{not json"
    messages = []
    for turn in range(1 + number % 2):
        said = [WORDS[(number * 5 + i * i + turn) % len(WORDS)] for i in range(4 + number % 9)]
        messages += [
            {"role": "user", "content": WORDS[number % 17]},
            {"role": "assistant", "content": " ".join(said)},
        ]
    many = f"value {number}"
    more = {"many": many, "none": None, "rank": number % 3}  # names that queries have, too
    return json.dumps({"messages": messages, "tag": "ab"[number % 2], **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    (folder / "data").mkdir()
    for name, rows in (("a", range(30)), ("b", range(30, 48))):
        text = "\n".join(line(n) for n in rows) + "\n"
        (folder / f"data/{name}.jsonl").write_text(text)
    return folder


def scanned(data: Path, out: Path, model: str, keep_tokens: str, **settings: Any) -> Scan:
    given: dict[str, Any] = {
        "rows_per_unit": 5,
        "keep": ["tag", "many", "none", "rank"],
        "threads": 1,
    }
    return scan(str(data), out, model=model, keep_tokens=keep_tokens, **given | RULE | settings)


@pytest.fixture(scope="module")
def whole(folder: Path, model_folder: str) -> Scan:
    return scanned(folder / "data", folder / "all", model_folder, "all")


@pytest.fixture(scope="module", params=["sample:0.3", "flagged"])
def kept(request: pytest.FixtureRequest, folder: Path, model_folder: str) -> Scan:
    out = folder / request.param.replace(":", "-")
    return scanned(folder / "data", out, model_folder, request.param)


@pytest.fixture(scope="module")
def sampled(folder: Path, model_folder: str) -> Scan:
    return scanned(folder / "data", folder / "sample-0.3", model_folder, "sample:0.3")


# --- what is kept ---


def test_what_is_kept_are_rows_of_the_whole(whole: Scan, kept: Scan) -> None:
    tokens = whole.tokens().set_index(["example", "position"])
    mine = kept.tokens().set_index(["example", "position"])
    texts = ["token", "top1"]
    rows = tokens.loc[mine.index].astype(dict.fromkeys(texts, str))
    assert_frame_equal(mine.astype(dict.fromkeys(texts, str)), rows)
    if kept.keep_tokens == "flagged":
        assert len(mine) == tokens["conflict"].sum() > 10
        assert mine["conflict"].all()
    else:
        assert 0.2 * len(tokens) < len(mine) < 0.4 * len(tokens)
        assert 0 < mine["conflict"].sum() < tokens["conflict"].sum()


def test_examples_without_a_kept_token_go(whole: Scan, kept: Scan) -> None:
    mine, theirs = kept.examples().set_index("example"), whole.examples().set_index("example")
    assert set(mine.index) == set(kept.tokens()["example"])
    assert_frame_equal(mine, theirs.loc[mine.index])


def test_few_parts_of_many_units(whole: Scan, kept: Scan) -> None:
    assert len(whole.manifest["parts"]) == 10
    assert len(kept.manifest["parts"]) == 1
    assert not (kept.path / "units").exists()
    assert (kept.path / "rejected.jsonl").read_bytes() == (
        whole.path / "rejected.jsonl"
    ).read_bytes()


def test_two_models_keep_the_same_tokens(
    folder: Path, sampled: Scan, tmp_path: Path, model_folder: str
) -> None:
    other = tmp_path / "other"
    tiny.build("llama", seed=5, max_position_embeddings=1024).save_pretrained(other)
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 1024
    tokenizer.save_pretrained(other)
    second = scanned(folder / "data", tmp_path / "scan", str(other), "sample:0.3")
    place = ["example", "position", "token_id"]
    assert_frame_equal(second.tokens()[place], sampled.tokens()[place])
    found = compare(sampled, second)
    assert found.totals["tokens"] == len(sampled.tokens())
    assert sum("only those are compared" in note for note in found.notes) == 2


# --- the whole from its totals ---


def test_the_summary_is_that_of_all_tokens(whole: Scan, kept: Scan) -> None:
    mine, theirs = summarize(kept), summarize(whole)
    for name in ("mean_nll", "mean_entropy"):
        assert mine.pop(name) == pytest.approx(theirs.pop(name), rel=1e-12)
    assert {k: v for k, v in mine.items() if k not in WHOLE} == {
        k: v for k, v in theirs.items() if k not in WHOLE
    }
    assert theirs["kept"].keys() == {"tag", "rank"}  # `many` has too many values, `none` none
    assert theirs["conflicts"] > 10
    assert len(theirs["classes"]) > 1


def test_quantiles_are_as_near_as_it_says(whole: Scan, kept: Scan) -> None:
    at = np.linspace(0, 1, 41).tolist()
    stated = summarize(kept)["kept_tokens"]["quantiles_too_low"]
    for column in ("entropy", "prob", "logprob", "grad_head"):
        exact = np.array(OfTokens(whole).quantiles(column, at))
        found = np.array(OfTotals(kept).quantiles(column, at))
        assert (np.abs(found) <= np.abs(exact)).all()
        assert (np.abs(exact - found) <= stated * np.abs(exact)).all()


def test_planes_and_places_are_exact(whole: Scan, kept: Scan) -> None:
    mine, theirs = OfTotals(kept), OfTokens(whole)
    assert (mine.plane().counts == theirs.plane().counts).all()
    assert (mine.conflict_plane().counts == theirs.conflict_plane().counts).all()
    assert mine.agreeing() == theirs.agreeing()
    assert mine.pair_kinds() == theirs.pair_kinds()
    for name, values in theirs.by_position().items():
        np.testing.assert_allclose(mine.by_position()[name], values, rtol=1e-9)


@pytest.mark.parametrize("kind", ["landscape", "stability", "positions", "tokens"])
def test_figures_are_of_all_tokens(kind: str, whole: Scan, kept: Scan) -> None:
    mine, theirs = (plots.PLOTS[kind](s).data.drop(columns="scan") for s in (kept, whole))
    assert_frame_equal(mine, theirs, rtol=1e-6)


def test_gates_from_cells(whole: Scan, kept: Scan) -> None:
    """Groups and sums are exact; a gate is that of its cell's means."""
    names = ["eaft", "dft", "masked-sft", "deft", "mile"]  # each reads other columns
    mine, theirs = (plots.gates(s, objective=names).data for s in (kept, whole))
    exact = ["objective", "group", "tokens"]
    assert_frame_equal(mine[exact], theirs[exact])
    assert mine["objective"].nunique() == len(names)
    for column in ("mean_gate", "loss_removed", "gradient_removed"):
        np.testing.assert_allclose(mine[column], theirs[column], atol=0.01)


@pytest.mark.parametrize("name", ["talr", "flow"])
def test_what_needs_examples_is_refused(name: str, kept: Scan) -> None:
    with pytest.raises(ScanError, match=r"reads every token.*rescan with --keep-tokens all"):
        plots.gates(kept, objective=[name])


def test_gradient_maps(whole: Scan, kept: Scan) -> None:
    mine, theirs = (plots.gradients(s, objective=["sft"]).data for s in (kept, whole))
    np.testing.assert_array_equal(mine["tokens"], theirs["tokens"])
    np.testing.assert_allclose(mine["mean_grad_logits"], theirs["mean_grad_logits"], rtol=1e-5)


def test_the_report_says_what_it_is_of(whole: Scan, kept: Scan, tmp_path: Path) -> None:
    mine, theirs = collect(kept), collect(whole)
    assert mine["headline"] == theirs["headline"]
    for name in ("counts", "conflicts"):
        assert mine["landscape"][name] == theirs["landscape"][name]
    strip = [
        [{k: v for k, v in row.items() if k != "places"} for row in page["pairs"]["rows"]]
        for page in (mine, theirs)
    ]
    assert strip[0] == strip[1]
    assert mine["groups"] == theirs["groups"]
    assert any(f"--keep-tokens {kept.keep_tokens}" in said for said in mine["notices"])
    assert report([kept], tmp_path / "r.html").stat().st_size > 50_000


def test_an_example_s_share_is_of_its_kept_tokens(sampled: Scan) -> None:
    shown = collect(sampled)["examples"]["rows"]
    tokens = sampled.tokens().groupby("example")["conflict"]
    assert any(row["held"] < row["trained"] for row in shown)
    for row in shown:
        found = tokens.get_group(row["example"])
        assert (row["held"], row["conflicts"]) == (len(found), found.sum())
        share = row["scores"]["conflict_share"]
        assert share == pytest.approx(row["conflicts"] / row["held"], rel=1e-3)


def test_captions_say_what_is_drawn(sampled: Scan) -> None:
    said = str(plots.landscape(sampled).get_supxlabel())
    assert "drawn from the sums of all" in " ".join(said.split())
    said = str(plots.landscape(sampled, style="scatter").get_supxlabel())
    assert f"drawn from the {sampled.kept:,} kept" in " ".join(said.split())


# --- what it refuses ---


@pytest.mark.parametrize("value", ["some", "sample", "sample:0", "sample:1", "sample:nan", "all:1"])
def test_a_bad_value_is_refused(value: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--keep-tokens must be all, flagged or sample:F"):
        scan(str(folder / "data"), tmp_path / "s", keep_tokens=value)


def test_a_quantile_rule_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--quantile needs every token"):
        scan(str(folder / "data"), tmp_path / "s", keep_tokens="flagged", quantile=0.1)


def test_another_rule_is_refused_and_the_same_is_not(kept: Scan) -> None:
    with pytest.raises(ScanError, match="by its own rule; rescan"):
        kept.flag(ConflictRule())
    assert kept.flag(ConflictRule(4.6, 0.002)).rule == kept.rule


@pytest.mark.parametrize(
    "verb",
    [
        lambda s, out: gradients(s.path, sample=4),
        lambda s, out: export(s, f"{out}.jsonl"),
        lambda s, out: plots.gates(s, objective=["stm"], base_scan=s.path),
        lambda s, out: plots.landscape(s, zoom="conflicts"),
    ],
    ids=["gradients", "export", "base scan", "zoom"],
)
def test_what_needs_every_token_says_so(
    verb: Callable[[Scan, Path], Any], kept: Scan, tmp_path: Path
) -> None:
    with pytest.raises(ScanError, match="reads every token"):
        verb(kept, tmp_path / "out")


def test_conflicts_alone_are_no_sample(folder: Path, model_folder: str) -> None:
    flagged = scanned(folder / "data", folder / "flagged", model_folder, "flagged")
    with pytest.raises(ScanError, match="landscape --style scatter reads every token"):
        plots.landscape(flagged, style="scatter")
    with pytest.raises(ScanError, match="plot topk reads every token"):
        plots.topk(flagged)


def test_nothing_kept(folder: Path, model_folder: str, whole: Scan, tmp_path: Path) -> None:
    """`show` and what is drawn from sums work, the rest says why not."""
    none = scanned(folder / "data", tmp_path / "s", model_folder, "sample:0.0000001")
    assert none.kept == len(none.conflicts()) == 0
    assert summarize(none)["conflicts"] == summarize(whole)["conflicts"]
    for kind in ("landscape", "stability", "positions", "tokens", "gates", "gradients"):
        assert len(plots.PLOTS[kind](none).data) > 0
    for refused in (
        lambda: plots.landscape(none, style="scatter"),
        lambda: plots.topk(none),
        lambda: report([none], tmp_path / "r.html"),
        lambda: compare(none, whole),
    ):
        with pytest.raises(BadInput, match="kept no token"):
            refused()


def test_means_of_cells_have_no_quantile(kept: Scan, whole: Scan) -> None:
    mine, theirs = (scan_step(s, None, ("prob",)).tokens for s in (kept, whole))
    assert mine.mean(lambda c: c["prob"]) == pytest.approx(theirs.mean(lambda c: c["prob"]))
    with pytest.raises(ScanError, match="a quantile over the tokens reads every token"):
        mine.quantile(lambda c: c["prob"], 0.5)


def test_conflicts_alone_are_not_compared(folder: Path, model_folder: str, whole: Scan) -> None:
    flagged = scanned(folder / "data", folder / "flagged", model_folder, "flagged")
    with pytest.raises(ScanError, match="compare reads every token"):
        compare(whole, flagged)


def test_another_rule_is_another_scan(folder: Path, model_folder: str, kept: Scan) -> None:
    with pytest.raises(ScanError, match="prob_below"):
        scanned(folder / "data", kept.path, model_folder, kept.keep_tokens, prob_below=0.1)


# --- interrupted, merged, damaged ---


def files(scan: Scan) -> dict[str, str]:
    names = ["tokens", "examples"]
    found = [p for n in names for p in sorted((scan.path / n).iterdir())]
    return {str(p.relative_to(scan.path)): sha256(p) for p in (*found, scan.path / TOTALS)}


@pytest.mark.parametrize("at", ["a unit", "the end"])
def test_an_interrupted_scan_goes_on(
    at: str,
    folder: Path,
    model_folder: str,
    kept: Scan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    score, scored = Scorer.score, list[int]()

    def stopping(self: Scorer, unit: Any, rows: Any) -> None:
        if at == "a unit" and len(scored) == 4:
            raise KeyboardInterrupt
        scored.append(unit.index)
        score(self, unit, rows)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", stopping)
        if at == "the end":
            patch.setattr(finish, "write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            scanned(folder / "data", tmp_path / "s", model_folder, kept.keep_tokens)
    before, scored = scored, []
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", stopping) if at == "the end" else None
        again = scanned(folder / "data", tmp_path / "s", model_folder, kept.keep_tokens)
    assert files(again) == files(kept)
    assert len(before) == (4 if at == "a unit" else 10)
    assert not scored


@pytest.mark.usefixtures("forked_workers")
def test_two_workers_write_the_same(
    folder: Path, model_folder: str, kept: Scan, tmp_path: Path
) -> None:
    again = scanned(folder / "data", tmp_path / "s", model_folder, kept.keep_tokens, workers=2)
    assert files(again) == files(kept)


def test_merged_as_if_scanned_at_once(
    folder: Path, model_folder: str, whole: Scan, kept: Scan, tmp_path: Path
) -> None:
    halves = [
        scanned(folder / f"data/{n}.jsonl", tmp_path / n, model_folder, kept.keep_tokens)
        for n in "ab"
    ]
    full = [
        scanned(folder / f"data/{n}.jsonl", tmp_path / f"full-{n}", model_folder, "all")
        for n in "ab"
    ]
    mine = summarize(merge(halves, tmp_path / "merged"))
    theirs = summarize(merge(full, tmp_path / "full"))
    for name in ("mean_nll", "mean_entropy"):
        assert mine.pop(name) == pytest.approx(theirs.pop(name), rel=1e-12)
    assert {k: v for k, v in mine.items() if k not in WHOLE} == {
        k: v for k, v in theirs.items() if k not in WHOLE
    }
    assert [row["examples"] for row in mine["kept"]["source"]] == [27, 16]
    assert mine["conflicts"] == summarize(whole)["conflicts"]
    with pytest.raises(BadInput, match="differ in --keep-tokens"):
        merge([halves[0], full[1]], tmp_path / "no")


def test_merged_samples_of_rows_are_numbered_alike(
    folder: Path, model_folder: str, tmp_path: Path
) -> None:
    """The last row that was drawn may have no token left."""
    made = {}
    for keep in ("all", "sample:0.02"):
        halves = [
            scanned(
                folder / f"data/{n}.jsonl",
                tmp_path / f"{keep[:3]}-{n}",
                model_folder,
                keep,
                sample=7,
            )
            for n in "ab"
        ]
        made[keep] = merge(halves, tmp_path / keep[:3])
    mine, theirs = (made[k].tokens() for k in ("sample:0.02", "all"))
    place = ["example", "position", "token_id"]
    assert 0 < len(mine) < 30
    assert len(mine.merge(theirs, on=place)) == len(mine)


def test_what_a_dead_run_left_goes(kept: Scan, folder: Path, model_folder: str) -> None:
    (kept.path / "units" / "totals").mkdir(parents=True)
    again = scanned(folder / "data", kept.path, model_folder, kept.keep_tokens)
    assert files(again) == files(kept)
    assert not (kept.path / "units").exists()


def damaged(scan: Scan, folder: Path, change: Callable[[pa.Table], pa.Table]) -> Scan:
    """The scan with other totals, its manifest saying that they are the right ones."""
    import shutil

    shutil.copytree(scan.path, folder)
    table = pq.read_table(folder / TOTALS)
    pq.write_table(change(table), folder / TOTALS)
    manifest = {**scan.manifest, "totals": sha256(folder / TOTALS)}
    return scans_made.written(folder, manifest)


def with_sums(change: Callable[[Any], None]) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        sums = {name: (keys, values.copy()) for name, (keys, values) in sums_of(table).items()}
        change(sums)
        return table_of(sums, totals_module.columns_of(table))

    return changed


CHANGES: dict[str, Callable[[Any], None]] = {
    "a cell far out": lambda s: s["cell"][0].__setitem__(0, str(2**40)),
    "a cell that is none": lambda s: s["cell"][0].__setitem__(0, "x"),
    "a token less": lambda s: s["cell"][1].__setitem__((0, 0), s["cell"][1][0, 0] - 1),
    "a cell twice": lambda s: s["cell"][0].__setitem__(0, s["cell"][0][1]),
    "a number that is none": lambda s: s["cell"][1].__setitem__((0, 1), np.nan),
    "no cells": lambda s: s.pop("cell"),
    "a role of other tokens": lambda s: s["role"][1].__setitem__((0, 0), 3),
    "bits beyond": lambda s: s["bits:prob"][0].__setitem__(0, "65536"),
    "a place before the first": lambda s: s["position"][0].__setitem__(0, "-1"),
    "a pair of numbers": lambda s: s["pair"][0].__setitem__(0, "[1, 2]"),
    "an unknown table": lambda s: s.__setitem__("more", (["a"], np.ones((1, 1)))),
}


@pytest.mark.parametrize("what", CHANGES)
def test_totals_of_other_tokens_are_refused(what: str, sampled: Scan, tmp_path: Path) -> None:
    poisoned = damaged(sampled, tmp_path / "scan", with_sums(CHANGES[what]))
    with pytest.raises(ScanError, match=r"totals\.parquet is damaged"):
        summarize(poisoned)


def test_totals_that_the_manifest_does_not_know(sampled: Scan, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(sampled.path, tmp_path / "scan")
    table = pq.read_table(tmp_path / "scan" / TOTALS)
    pq.write_table(table.slice(1), tmp_path / "scan" / TOTALS)
    with pytest.raises(ScanError, match="its sha256 differs"):
        Scan.open(tmp_path / "scan")
    (tmp_path / "scan" / TOTALS).unlink()
    with pytest.raises(ScanError, match=r"totals\.parquet cannot be read"):
        Scan.open(tmp_path / "scan")


# --- adding up ---


def some_totals(seed: int, **columns: Any) -> pa.Table:
    """Of tokens that never were, some pairs of their few words commoner than others."""
    words = [" a", " b", " a", " c", " a", " d", " e", " b", " f", " g", " h"]
    frame = scans_made.measured(scans_made.places(300, seed), seed, follow=False)
    frame = scans_made.with_text(frame, words).assign(**columns)
    examples = pa.table(
        {
            "example": frame["example"].unique(),
            "messages": [json.dumps([{"role": "assistant"}] * 6)] * frame["example"].nunique(),
            "tag": [f"t{seed % 3}"] * frame["example"].nunique(),
        }
    )
    tokens = pa.Table.from_pandas(frame, preserve_index=False)
    return totals_module.unit_totals(tokens, examples, ["tag"], ConflictRule(), set())


@pytest.mark.parametrize(
    ("prob", "octave"),
    [
        (1, 0),
        (2**-8, 0),
        (0.99 * 2**-8, 1),
        (2**-9, 1),
        (0.99 * 2**-9, 2),
        (2**-70, 62),
        (0.99 * 2**-70, 63),
        (2**-140, 63),
        (0, 63),
    ],
)
def test_rare_tokens_are_parted_by_octaves(prob: float, octave: int) -> None:
    found = sums_of(some_totals(0, prob=np.float32(prob)))["cell"][0]
    assert {int(key) // (totals_module.SIDES * CELLS) for key in found} == {octave}


def assert_same(a: pa.Table, b: pa.Table) -> None:
    mine, theirs = sums_of(a), sums_of(b)
    assert mine.keys() == theirs.keys()
    for name, (keys, values) in mine.items():
        assert keys == theirs[name][0], name
        np.testing.assert_allclose(values, theirs[name][1], rtol=1e-12)


def test_the_order_and_the_grouping_of_a_sum_do_not_matter() -> None:
    units = [some_totals(seed) for seed in range(9)]
    one = added(units)
    assert_same(added_up(iter(units), at_once=3), one)
    assert_same(added([added(units[5:]), added(units[:5])]), one)
    assert_same(added_up(iter(units[::-1]), at_once=2), one)
    assert added_up(iter(units), at_once=3).equals(added_up(iter(units), at_once=3))
    tokens = sums_of(one)["cell"][1][:, 0].sum()
    assert tokens == 9 * 300


@pytest.mark.parametrize("count", [1, 3, 8, 9, 23])
def test_units_are_folded_to_the_same_bytes_whenever(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "FOLD", 3)
    units = [some_totals(seed) for seed in range(count)]
    for name in ("early", "late"):
        (tmp_path / name / "totals").mkdir(parents=True)
        for index, table in enumerate(units):
            if name == "early":  # as a scan does that finds a worker's unit missing now and then
                folding.fold(tmp_path / name, index)
            if name == "late" or index != 4:
                write_parquet(part_file(tmp_path / name, "totals", index), table)
            if name == "early" and index == 7:
                write_parquet(part_file(tmp_path / name, "totals", 4), units[4])
    waiting = {n: len(list((tmp_path / n / "totals").iterdir())) for n in ("early", "late")}
    one, other = (folding.folded(tmp_path / n, count) for n in ("early", "late"))
    assert one.equals(other)
    assert_same(one, added(units))
    assert waiting["late"] == count
    assert waiting["early"] <= 6


def test_a_scan_folds_as_it_goes(
    folder: Path, model_folder: str, kept: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed and resumed, it does not fold what is folded again."""
    monkeypatch.setattr(folding, "FOLD", 2)
    monkeypatch.setattr(scanning, "FOLD", 2)
    score = Scorer.score

    def dying(self: Scorer, unit: Any, rows: Any) -> None:
        if unit.index == 8:
            raise KeyboardInterrupt
        score(self, unit, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", dying)
        with pytest.raises(KeyboardInterrupt):
            scanned(folder / "data", tmp_path / "s", model_folder, kept.keep_tokens)
    waiting = sorted(f.name for f in (tmp_path / "s" / "units" / "totals").iterdir())
    # Units 6 and 7 were not yet there when the next one was read, ahead of them.
    assert waiting == [
        "part-00006.parquet",
        "part-00007.parquet",
        "sum-1-00002.parquet",
        "sum-2-00000.parquet",
    ]
    again = scanned(folder / "data", tmp_path / "s", model_folder, kept.keep_tokens)
    straight = scanned(folder / "data", tmp_path / "t", model_folder, kept.keep_tokens)
    assert files(again) == files(straight)
    mine, theirs = ({**summarize(s), "path": ""} for s in (again, kept))
    for name in ("mean_nll", "mean_entropy"):
        assert mine.pop(name) == pytest.approx(theirs.pop(name), rel=1e-12)
    assert mine == theirs


def test_commonest_pairs_are_never_too_high_and_no_lower_than_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    units = [some_totals(seed) for seed in range(12)]
    exact = sums_of(added(units))["pair"]
    true = dict(zip(exact[0], exact[1][:, 0], strict=True))
    assert len(true) > 40
    monkeypatch.setattr(totals_module, "MOST_PAIRS", 20)
    found = sums_of(added_up(iter(units), at_once=3))
    low = dict(zip(*map(list, (found["scan"][0], found["scan"][1][:, 0])), strict=True))
    assert 0 < low["pairs_too_low"] <= sum(true.values()) / 20
    assert len(found["pair"][0]) <= 20
    counts = dict(zip(found["pair"][0], found["pair"][1][:, 0], strict=True))
    for pair, n in true.items():
        assert n - low["pairs_too_low"] <= counts.get(pair, 0) <= n


def test_the_sketch_of_quantiles_adds_up() -> None:
    random = np.random.default_rng(0)
    values = np.float32(random.lognormal(0, 4, 10_001) * random.choice([-1, 1], 10_001))
    at = np.linspace(0, 1, 101).tolist()
    halves = upper_bits(values[:5000]) + upper_bits(values[5000:])
    found, exact = np.array(quantiles_within(halves, at)), np.array(quantiles(lambda: [values], at))
    assert (np.abs(found) <= np.abs(exact)).all()
    assert (np.abs(exact - found) <= TOO_LOW * np.abs(exact)).all()
    assert all(a <= b for a, b in pairwise(found))


def test_a_dry_run_knows_what_is_kept(folder: Path, model_folder: str) -> None:
    given = {"model": model_folder, "tokens_per_second": 9}
    made = {
        k: estimate(str(folder / "data"), keep_tokens=k, **given)
        for k in ("all", "flagged", "sample:0.1")
    }
    disk = {k: e.disk_bytes.value for k, e in made.items()}
    assert disk["sample:0.1"] < 0.7 * disk["all"] == 0.7 * disk["flagged"]
    assert "as if every token were flagged" in str(made["flagged"])
    assert "for totals" not in str(made["all"])
