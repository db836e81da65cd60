"""The benchmark that puts the paper's claims to the test: its figures, and that it goes on."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import claims_made
import duckdb
import numpy as np
import pandas
import pytest
from evidence import audit, findings, frontier, runs, stories
from evidence.bench import FORMS
from notebook_cells import OF_CLAIMS, require_same_kinds
from scipy import stats

from eaft_probe.objectives.gates import objective


@pytest.fixture(scope="module")
def made(claims_folder: Path) -> dict[str, Any]:
    return json.loads((claims_folder / "claims.json").read_text())


def finding(made: dict[str, Any], claim: int, row: str, column: str) -> dict[str, Any]:
    (found,) = (
        f for f in made["findings"] if (f["claim"], f["row"], f["column"]) == (claim, row, column)
    )
    return found


def test_every_claim_has_a_table_and_the_paper_beside_it(claims_folder: Path) -> None:
    page = (claims_folder / "claims.md").read_text()
    assert [line[3] for line in page.splitlines() if line.startswith("## ")] == list("123456")
    assert page.count("the paper |") == 5  # nobody has measured the sixth
    assert (claims_folder / "frontier.png").stat().st_size > 10_000


def test_conflict_shares_are_those_of_the_parts(claims_folder: Path, made: dict[str, Any]) -> None:
    for folder, column in (("gsm8k", "data"), ("gsm8k-own", "rollouts")):
        parts = claims_folder / "scans" / folder
        rows = "example" if column == "data" else "CAST(row AS INT)"
        shares = duckdb.sql(f"""
            SELECT avg(CASE WHEN entropy < 0.17 * ln(20) AND prob < 0.2 THEN 1 ELSE 0 END)
            FROM (SELECT *, row_number() OVER (PARTITION BY example ORDER BY position) AS nth
                  FROM '{parts}/tokens/*.parquet')
            JOIN (SELECT example, {rows} AS data_row FROM '{parts}/examples/*.parquet')
            USING (example)
            WHERE nth <= {claims_made.FORM.new_tokens}
            GROUP BY data_row // {claims_made.FORM.prompts} ORDER BY 1""").fetchall()
        mean = sum(s[0] for s in shares) / len(shares)
        assert len(shares) == claims_made.FORM.seeds
        assert finding(made, 1, "gsm8k", column)["value"] == pytest.approx(mean)


def test_exact_and_closed_shares_are_shares(made: dict[str, Any]) -> None:
    found = [f["value"] for f in made["findings"] if f["claim"] == 3]
    assert len(found) == 6
    assert all(0 <= value <= 1 for value in found)
    sft, eaft = (finding(made, 3, o, "of the gradient, closed form") for o in ("sft", "eaft"))
    assert eaft["value"] < sft["value"]  # a gate that grows with entropy turns conflicts down


def test_the_end_of_a_story_that_was_cut_is_not_learned(claims_folder: Path) -> None:
    for name in ("trained-0", "trained-1", "audit-stories"):
        lines = (claims_folder / "data" / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        cut = [n for n, row in enumerate(rows) if row["finish"] == "length"]
        tokens = pandas.read_parquet(claims_folder / "scans" / name / "tokens")
        assert cut
        assert not (tokens["example"].isin(cut) & (tokens["token"] == "</s>")).any()


def test_the_runs_say_what_the_log_says(claims_folder: Path, made: dict[str, Any]) -> None:
    form = claims_made.FORM
    assert len(made["runs"]) == 3 * form.seeds * len(form.learning_rates)
    for run in made["runs"]:
        name = f"{run['variant']}_{run['learning_rate']:g}_{run['seed']}"
        folder = claims_folder / "runs" / name
        log = pandas.read_parquet(folder / "log.parquet").query("group == 'all'")
        assert run["kl"] == log["retain_kl"].iloc[-1] > 0
        assert len(log) == form.epochs
        assert not list(folder.rglob("*.safetensors"))


def test_what_was_lost_is_made_again_and_nothing_else(
    claims_folder: Path, made: dict[str, Any], shared: Path
) -> None:
    lost = min((claims_folder / "runs" / "stages").glob("*.json"))
    own = {"claims.json", "claims.md", "frontier.png"}
    kept = [f for f in claims_folder.rglob("*") if f.is_file() and f.name not in own]
    kept = [f for f in kept if f != lost and lost.stem not in f.parts]
    before = [f.stat().st_mtime_ns for f in kept]
    assert len(before) > 50
    lost.unlink()
    claims_made.make(shared, claims_folder)
    assert [f.stat().st_mtime_ns for f in kept] == before
    assert lost.is_file()
    assert json.loads((claims_folder / "claims.json").read_text()) == made


@pytest.mark.parametrize("path", OF_CLAIMS, ids=lambda p: p.stem)
def test_its_notebook_runs_and_shows_the_same_kinds_of_things(
    path: Path, claims_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAIMS", str(claims_folder))
    require_same_kinds(path, tmp_path, monkeypatch)


def test_quick_samples_little_and_has_three_seeds() -> None:
    assert FORMS["quick"].sampled <= 15_000
    assert all(form.seeds >= 3 for form in FORMS.values())
    form = FORMS["quick"]
    assert form.trained + form.held_out + form.retained <= form.stories


def test_the_form_for_a_gpu_splits_mathematics_and_retains_general_text(
    shared: Path, tmp_path: Path
) -> None:
    bench = replace(claims_made.bench(shared, tmp_path), form=FORMS["gpu"])
    sets = [runs._mathematics(bench, seed) for seed in range(3)]
    form = bench.form
    sizes = [form.trained, form.held_out, form.retained]
    assert all([len(s) for s in split] == sizes for split in sets)
    questions = [row["key"] for split in sets for part in split[:2] for row in part]
    assert len(set(questions)) == len(questions)
    texts = [row["text"] for split in sets for row in split[2]]
    assert len(set(texts)) > 0.99 * len(texts)
    assert any("\nAnswer: " in t for t in texts)  # MMLU
    assert any(t.startswith("Write") for t in texts)  # IFEval


def test_every_variant_is_an_objective() -> None:
    named = {str(objective(v.objective, v.fields)) for v in runs.VARIANTS}
    assert len(named) == len(runs.VARIANTS)
    wanted = ("sft", "masked-sft", "eaft", "dft", "talr", "flow", "sft-kl", "asft", "deft")
    assert {v.objective for v in runs.VARIANTS} == set(wanted)


# --- figures ---


@pytest.mark.parametrize("count", [3, 5, 10])
def test_an_interval_over_seeds_is_students(count: int) -> None:
    values = np.random.default_rng(count).normal(3, 1, count)
    found = findings.over_seeds(1, "", "", values.tolist())
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) == pytest.approx(high - low, rel=0.01)


def test_an_interval_of_ratios_goes_by_logs_and_keeps_to_what_can_be() -> None:
    found = findings.over_seeds(1, "", "", [1.0, 4.0, math.nan], "×")
    assert (found.value, found.seeds) == (pytest.approx(2.0), 2)
    assert found.low * found.high == pytest.approx(4.0)
    share = findings.over_seeds(1, "", "", [0.0, 0.1, 0.9], "%", findings.SHARE)
    assert (share.low, share.high) == (0.0, 1.0)
    assert str(findings.over_seeds(1, "", "", [math.nan])) == findings.UNKNOWN


def test_auroc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in score[positive] for b in score[~positive]]
    assert audit.auroc(score, positive) == pytest.approx(sum(pairs) / len(pairs))


def test_precision_and_recall_are_taken_at_as_many_as_the_rule_flags() -> None:
    frame = pandas.DataFrame(
        {
            "conflict": [1, 1, 0, 0, 0],
            "nll": [1.0, 2.0, 9.0, 8.0, 0.0],
            "changed": [True, False, True, False, False],
        }
    )
    assert audit.against(frame, "conflict", "conflict")[:2] == (0.5, 0.5)
    assert audit.against(frame, "nll", "conflict")[:2] == (0.5, 0.5)  # 9 and 8: one was changed
    frame["conflict"] = [0, 0, 0, 0, 0]
    assert math.isnan(audit.against(frame, "conflict", "conflict")[0])


@pytest.mark.parametrize("at", range(0, 20, 2))
def test_a_changed_answer_differs_where_it_says(at: int) -> None:
    said = "He had 12 marbles, gave 5 away and so kept 7 of 12."
    row = {"key": "a", "messages": [{"role": "assistant", "content": said}]}
    audit._tamper(row, row["messages"][0], audit.NUMBER, audit._other_number, at)
    told, (start, end) = row["messages"][0]["content"], row["changed"]
    assert told != said
    assert told[:start] + told[end:] == said[:start] + said[end:]
    assert told[start] != said[start]


def test_every_other_answer_is_left_alone() -> None:
    row = {"prompt": "p", "completion": "Tim and Lily."}
    audit._tamper(row, row, audit.NAME, audit._other_name, 1)
    assert row == {"prompt": "p", "completion": "Tim and Lily.", "changed": None}


def test_a_name_is_never_replaced_by_itself() -> None:
    for at in range(50):
        assert audit._other_name("Tim", random.Random(at)) != "Tim"


def test_the_dialect_replaces_whole_words() -> None:
    told = stories.in_dialect({"prompt": "p", "completion": "One day she said playful, play."})
    assert told["completion"] == "One night they sang playful, fight."


# --- the frontier ---


def line(variant: str, factor: float, reach: float = 1.0) -> list[dict[str, Any]]:
    """KL = factor · learned², four learning rates, the last of which unlearns."""
    points = [(rate, reach * rate, factor * (reach * rate) ** 2) for rate in (0.2, 0.5, 1.0)]
    points.append((2.0, -0.3, 50.0))
    return [
        {
            "variant": variant,
            "seed": seed,
            "learning_rate": rate,
            "learned": learned,
            "kl": kl,
            "retain_rise": 0.0,
            "passes": [],
        }
        for seed in range(3)
        for rate, learned, kl in points
    ]


def test_kl_is_compared_where_both_learned_the_same() -> None:
    records = line("sft", 1.0) + line("eaft", 3.0, reach=0.95) + line("dft", 1.0, reach=0.3)
    found = {(f.row, f.column): f for f in frontier.frontier(records)}
    for level in ("half", "nine tenths"):
        assert found["sft", f"KL / sft's at {level}"].value == pytest.approx(1)
        assert found["eaft", f"KL / sft's at {level}"].value == pytest.approx(3)
        assert math.isnan(found["dft", f"KL / sft's at {level}"].value)  # it never learns half
    assert found["dft", "learned, nats"].value == pytest.approx(0.3)


def test_the_picture_has_a_panel_for_each_objective() -> None:
    records = line("sft", 1.0) + line("eaft", 3.0) + line("dft", 1.0, reach=0.3)
    chart = frontier.picture(records, "note")
    panels = [a for a in chart.axes if a.get_visible()]
    assert [a.get_title() for a in panels] == ["eaft", "dft"]
    drawn = panels[0].get_lines()[-1]
    assert drawn.get_xdata().tolist() == pytest.approx([0.19 / 0.95, 0.5, 1.0, -0.3])
    assert drawn.get_ydata().tolist() == pytest.approx([3 * 0.04, 3 * 0.25, 3.0, 50.0])
