"""A report of several scans: shares with intervals, names, notes, refusals, bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import scans_made
from figures import RULE
from hostile import ATTACKS
from pages import payload

from eaft_probe import Scan
from eaft_probe.cli import _run
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput, ScanError
from eaft_probe.verbs.compare import compare
from eaft_probe.view.report.data_sets import side_by_side, titles
from eaft_probe.view.report.report import collect, report

Frame = pandas.DataFrame


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, labels: Frame) -> Scan:
    """A scan of 3 examples, too few for an interval, under another model and another rule."""
    tokens = labels[labels["example"] < 4]
    folder = tmp_path_factory.mktemp("few") / "few"
    return scans_made.write(
        folder, tokens, 1, ConflictRule(1, 0.3), source="few.jsonl", model="large"
    )


@pytest.fixture(scope="module")
def shares(a: Scan, apart: Scan, few: Scan) -> dict[str, Any]:
    return side_by_side([a, apart, few], seed=3)


# --- numbers ---


def test_intervals_are_those_of_compare(a: Scan, apart: Scan, shares: dict[str, Any]) -> None:
    wanted = compare(a, apart, seed=3).summary()["quantities"]
    for side, found in zip("ab", shares["sets"], strict=False):
        for name, row in found["quantities"].items():
            assert row == [wanted[name][f"{side}{end}"] for end in ("", "_low", "_high")]
    assert shares["sets"][0]["quantities"].keys() == wanted.keys()


def test_the_first_rule_counts_for_all(few: Scan, shares: dict[str, Any]) -> None:
    table, found = few.tokens(), shares["sets"][2]
    row = {name: values[0] for name, values in found["quantities"].items()}
    assert row["conflict_share"] == pytest.approx(RULE(table).mean())
    assert RULE(table).sum() != table["conflict"].sum()
    assert row["agreeing_share"] == pytest.approx((table["rank"] == 0).mean())
    assert row["mean_nll"] == pytest.approx(-table["logprob"].astype(float).mean())
    assert (found["tokens"], found["examples"]) == (len(table), table["example"].nunique())
    assert any("few under large is flagged by another rule" in n for n in shares["notes"])


def test_too_few_examples_have_no_interval_and_it_is_said(shares: dict[str, Any]) -> None:
    found = shares["sets"][2]
    assert {tuple(row[1:]) for row in found["quantities"].values()} == {(None, None)}
    said = f"few under large has {found['examples']} examples: an interval needs at least 10."
    assert said in shares["notes"]


def test_planes_hold_every_token(a: Scan, apart: Scan, shares: dict[str, Any]) -> None:
    for scan, found in zip((a, apart), shares["sets"], strict=False):
        table, plane = scan.tokens(["prob", "entropy"]), found["plane"]
        cells = np.floor(table.entropy * 8) * 64 + np.minimum(np.floor(table.prob * 64), 63)
        places, counts = np.unique(cells, return_counts=True)
        np.testing.assert_array_equal(np.cumsum(plane["counts"][::2]), places)
        np.testing.assert_array_equal(plane["counts"][1::2], counts)


# --- words ---


def test_names_tell_scans_apart(a: Scan, tuned: Scan, apart: Scan, few: Scan) -> None:
    assert titles([a, apart]) == ["script>", ATTACKS[1]]  # one model
    assert titles([a, tuned]) == ["made", "script><!--"]  # one data set
    assert titles([apart, few]) == [f"{ATTACKS[1]} under made", "few under large"]
    again = Scan(a.path.parent, a.manifest)
    assert titles([a, again]) == [a.path.name, a.path.parent.name]
    assert titles([a, a]) == [f"{i}: script> under made" for i in (1, 2)]
    found = [side_by_side([a, other], 0)["title"] for other in (apart, tuned, few)]
    assert found == ["2 data sets under made", "script> under 2 models", "2 scans"]


def test_what_a_reader_should_know_is_said(
    a: Scan, tuned: Scan, apart: Scan, few: Scan, tmp_path: Path
) -> None:
    assert side_by_side([a, apart], 0)["notes"] == []
    assert any("of the same data" in n for n in side_by_side([a, tuned], 0)["notes"])
    assert any("models differ" in n for n in side_by_side([apart, few], 0)["notes"])
    sample = scans_made.keeping(apart, tmp_path / "kept", 0.5)
    (note,) = side_by_side([a, sample], 0)["notes"]
    assert f"kept {sample.kept:,} of 700 tokens" in note


# --- the page ---


def test_each_scan_is_on_the_page(a: Scan, apart: Scan, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "r.html"
    assert _run(["report", str(a.path), str(apart.path), "--seed", "3", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    found = payload(out.read_text("utf-8"))
    wanted = side_by_side([a, apart], 3)["sets"][1]["quantities"]
    assert found["data_sets"]["sets"][1]["quantities"] == wanted
    for scan, shown in zip((a, apart), found["scans"], strict=True):
        alone = collect(scan, 0.5)
        assert shown["landscape"] == alone["landscape"]
        assert len(shown["tokens"]["rows"]) == len(alone["tokens"]["rows"])
        assert [e["example"] for e in shown["examples"]["rows"]] == [
            e["example"] for e in alone["examples"]["rows"]
        ]


def test_scans_share_the_bytes(a: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eaft_probe.view.report.selection.EXAMPLES_BYTES", 200_000)
    whole, third = collect(a), collect(a, 1 / 3)
    examples = [len(found["examples"]["rows"]) for found in (whole, third)]
    assert 0 < 2 * examples[1] < examples[0]
    others = [len(t["rows"]) - t["conflicts"] for t in (whole["tokens"], third["tokens"])]
    assert 0 < others[1] < others[0]


# --- refusals ---


def test_what_does_not_go_with_several_scans(
    a: Scan, tuned: Scan, apart: Scan, tmp_path: Path
) -> None:
    out = tmp_path / "r.html"
    with pytest.raises(BadInput, match="found 2 scans; leave out --against"):
        report([a, apart], out, tuned)
    conflicts = Scan(
        apart.path,
        {**apart.manifest, "config": {**apart.manifest["config"], "keep_tokens": "flagged"}},
    )
    with pytest.raises(ScanError, match="--keep-tokens flagged"):
        report([a, conflicts], out)
    assert not out.exists()
