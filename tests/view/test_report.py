"""What the report says and how many bytes it takes; `test_report_browser.py` opens it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import scans_made
from hostile import ATTACKS, hostile_scan
from pages import payload, without

from eaft_probe import Scan
from eaft_probe import scan as scan_rows
from eaft_probe.analysis.scores import available_scores
from eaft_probe.cli import _run
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput, MissingColumn, ScanError
from eaft_probe.view.report import page, selection
from eaft_probe.view.report.planes import sparse
from eaft_probe.view.report.report import collect, headline, report
from eaft_probe.view.report.selection import GAP, pieces, within

MOST_BYTES = 8_000_000


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> Scan:
    return hostile_scan(tmp_path_factory.mktemp("report") / "scan", model_folder)


@pytest.fixture(scope="module")
def html(done: Scan, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report([done], tmp_path_factory.mktemp("out") / "report.html").read_text("utf-8")


def dense(steps: list[int], shape: tuple[int, int]) -> np.ndarray:
    cells = np.zeros(shape[0] * shape[1], np.int64)
    cells[np.cumsum(steps[::2])] = steps[1::2]
    return cells.reshape(shape)


def test_landscape_counts_every_token(done: Scan, html: str) -> None:
    found, table = (
        payload(html)["scans"][0]["landscape"],
        done.tokens(["prob", "entropy", "conflict"]),
    )
    shape = (found["rows"], found["columns"])
    for name, rows in (("counts", table), ("conflicts", table[table.conflict])):
        across, up = np.floor(rows.prob * 256), np.floor(rows.entropy * 32)
        expected = np.zeros(shape, np.int64)
        np.add.at(expected, (up.astype(int), across.astype(int)), 1)
        np.testing.assert_array_equal(dense(found[name], shape), expected)


def test_listed_tokens_have_their_exact_cells(done: Scan, html: str) -> None:
    """Rounded to four digits, some would lie in the next cell, and no cell may list more than it
    holds."""
    listed = payload(html)["scans"][0]["tokens"]
    exact = done.tokens(["example", "position", "prob", "entropy"])
    exact = exact.set_index(["example", "position"])
    rows = [dict(zip(listed["names"], row, strict=True)) for row in listed["rows"]]
    assert rows
    for row in rows:
        prob, entropy = exact.loc[(row["example"], row["position"])]
        assert row["cell"] == int(entropy * 32) * 256 + min(int(prob * 256), 255)


def test_text_of_the_data_is_text(html: str) -> None:
    inside = html.split('type="application/json">', 1)[1].split("</script>", 1)[0]
    assert not set("<>&") & set(inside)
    assert not any(ord(c) < 32 or c in "\u202e\u2028\x7f\U000e0041" for c in inside)
    shown = json.dumps(payload(html), ensure_ascii=False)
    assert json.dumps(ATTACKS[0])[1:-1] in shown
    assert "\\\\u202e" in shown
    assert html.count("<script") == 3  # payload, library, our own: none from the data


def test_policy_allows_what_is_there_and_no_more(html: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy[1]
    for directive, element in (("script-src", "script"), ("style-src", "style")):
        texts = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
        assert rules[directive].split() == [page._hash(text) for text in texts]


def test_examples_are_whole(done: Scan, html: str) -> None:
    found, examples = payload(html)["scans"][0]["examples"], done.examples().set_index("example")
    assert {e["example"] for e in found["rows"]} == set(examples.index)
    for e in found["rows"]:
        shown = "".join(a + b for a, b in zip(e["gaps"], [*e["text"], ""], strict=True))
        text = examples.text[e["example"]]
        assert shown == page.printable(text) or not text.isascii()  # bytes show by themselves


def orders(done: Scan) -> dict[str, "pandas.Series[float]"]:
    """Three scores of every row, the worst first."""
    rows = done.tokens().groupby("example")
    scores = {
        "conflict_share": rows["conflict"].mean(),
        "mean_nll": -rows["logprob"].mean(),
        "max_surprise": rows["surprise"].max(),
    }
    return {n: s.sort_values(ascending=False, kind="stable") for n, s in scores.items()}


@pytest.mark.parametrize("most", [7, 20, 10_000])
def test_the_worst_rows_by_every_score_are_on_the_page(
    scan: Scan, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(selection, "MOST_EXAMPLES", most)
    found, wanted = selection.examples(scan, 1), orders(scan)
    rows = {e["example"]: e["scores"] for e in found["rows"]}
    assert len(rows) == min(most, found["of"])
    assert found["complete"] >= 1
    for name, scores in wanted.items():
        assert set(scores.index[: found["complete"]]) <= set(rows)
        for example, own in rows.items():
            assert own[name] == pytest.approx(scores[example], rel=1e-3)
    told = {s["name"]: s["meaning"] for s in found["scores"]}
    assert told.keys() == {s.name for s in available_scores(scan)}
    assert told["mean_nll"] == "mean ℓ"


def test_a_scan_that_kept_some_tokens_orders_by_what_it_knows(scan: Scan, tmp_path: Path) -> None:
    kept = scans_made.keeping(scan, tmp_path / "kept", 0.3)
    found, rows = selection.examples(kept, 1), kept.tokens().groupby("example")
    assert [s["name"] for s in found["scores"]] == ["conflict_share", "mean_nll"]
    for e in found["rows"]:
        assert e["scores"]["conflict_share"] == pytest.approx(
            rows["conflict"].mean()[e["example"]], rel=1e-3
        )
        assert e["scores"]["mean_nll"] == pytest.approx(e["nll"], rel=1e-3)


def test_same_scan_same_bytes(done: Scan, html: str, tmp_path: Path) -> None:
    again = report([Scan.open(done.path)], tmp_path / "again.html")
    assert again.read_text("utf-8") == html
    assert list(tmp_path.iterdir()) == [again]


def token(nth: int, start: int, end: int) -> dict[str, Any]:
    return {"nth": nth, "char_start": start, "char_end": end, "token": "\\xf0", "conflict": False}


def test_a_long_example_is_shown_in_part() -> None:
    text = "u" * 5_000 + "abcd" + "v" * 9
    whole = pieces(
        text, [token(1, 5_000, 5_002), token(2, 5_000, 5_002), token(3, 5_002, 5_004)], 3
    )
    assert whole["text"] == ["ab", "\\xf0", "cd"]  # the second is a byte of the same character
    assert whole["gaps"] == [("u" * (GAP // 2), 4_000, "u" * (GAP // 2)), "", "", "v" * 9]
    part = pieces(text, [token(2, 5_000, 5_002)], 3)
    assert part["gaps"] == [("", 5_000, ""), ("", 11, "")]


def test_budgets(done: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    full = sparse(np.full((512, 256), 10_000_000))
    library = len(page.page({}).encode())
    fixed = library + len(page.encode({"counts": full, "conflicts": full}))
    assert fixed + selection.TOKENS_BYTES + selection.EXAMPLES_BYTES < MOST_BYTES - 400_000
    items = [{"text": "é<" * 50}] * 10
    assert len(list(within(items, 1_000))) == 1_000 // (len(page.encode(items[0]).encode()) + 1)
    monkeypatch.setattr(selection, "EXAMPLES_BYTES", 3_000)
    monkeypatch.setattr(selection, "EXAMPLE_BYTES", 2_000)
    found = collect(done)["examples"]
    assert 0 < len(found["rows"]) < found["of"]
    assert len(page.encode(found["rows"])) <= 3_100
    assert any(len(e["text"]) < e["trained"] for e in found["rows"])


def test_headline_speaks_plainly() -> None:
    summary = {
        "conflicts": 134,
        "trained_tokens": 7940,
        "examples": 120,
        "examples_with_conflicts": 70,
        "mean_nll": 3.147,
    }
    said = [f"{h.figure} {h.label}" for h in headline(summary, 3172)]
    assert said == [
        "1 in 59 of the tokens to be learned is a confident conflict",
        "70 of 120 examples have at least one conflict",
        "40% of the tokens are what the model would have said",
        "3.15 nats is the mean loss of a token (nll)",
    ]
    few = headline({**summary, "conflicts": 0, "examples": 1, "mean_nll": 9}, None)
    assert few[0].figure == "None"
    assert few[1].label == "example has at least one conflict"
    assert few[2].detail == "As if each were drawn from 8,100 equally likely ones."
    many = headline({**summary, "conflicts": 6000}, None)[0]
    assert (
        f"{many.figure} {many.label}" == "76% of the tokens to be learned are confident conflicts"
    )
    rare = headline({**summary, "conflicts": 1, "trained_tokens": 10**8}, None)[0]
    assert rare.detail.startswith("1 of 100,000,000 (1.0×10⁻⁶%): ")


def test_one_token_and_no_conflict(tmp_path: Path, model_folder: str) -> None:
    done = scan_rows([{"text": "a"}], tmp_path / "s", model=model_folder, max_length=2)
    found = collect(done.flag(ConflictRule(0.0, 0.0)))
    assert found["tokens"]["of"] == len(found["tokens"]["rows"]) == len(done.tokens()) == 1
    assert found["pairs"]["rows"] == []
    assert found["headline"][0]["figure"] == "None"
    assert report([done], tmp_path / "r.html").stat().st_size < 1_200_000


def test_missing_columns(done: Scan, tmp_path: Path) -> None:
    lacking = collect(without(done, tmp_path / "a", ("rank", "top1", "top1_prob", "grad_head")))
    assert len(lacking["headline"]) == 3
    assert "rank" not in [c["name"] for c in lacking["columns"]]
    with pytest.raises(MissingColumn, match="'entropy'"):
        collect(without(done, tmp_path / "b", ("entropy",)))


def test_empty_scan_and_unwritable_target(done: Scan, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "empty"
    shutil.copytree(done.path, folder)
    for file in Scan.open(folder).part_files("tokens"):
        pq.write_table(pq.read_table(file)[:0], file)
    with pytest.raises(ScanError, match="has 0 rows, the manifest says"):
        Scan.open(folder)
    with pytest.raises(BadInput, match="no scored tokens"):
        report([Scan(folder, done.manifest).flag(done.rule)], tmp_path / "r.html")
    assert not list(tmp_path.glob("*r.html*"))
    assert _run(["report", str(done.path), "--out", str(tmp_path / "no" / "r.html")]) == 2
    assert _run(["report", str(done.path), "--out", str(tmp_path)]) == 2
    assert _run(["report", str(done.path), "--out", "."]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all("cannot write" in line for line in lines)
