"""`scan --dry-run`: exact where all rows are looked at, honest where not, and nothing written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eaft_probe import scan
from eaft_probe.cli import _run
from eaft_probe.data.units import Unit
from eaft_probe.errors import BadInput, DataError
from eaft_probe.verbs.estimate import estimate as estimating
from eaft_probe.verbs.estimate.estimate import estimate, total
from eaft_probe.verbs.scan.score_unit import Scorer

WORDS = "the cat sat on a mat and then it ran over hills to see what was there".split()  # noqa: SIM905
NOTES = ("counting ", "scoring ")
RATE = {"tokens_per_second": 1000}


def row(number: int) -> dict[str, Any]:
    answer = " ".join(WORDS[(number * 5 + i * i) % len(WORDS)] for i in range(1 + number**2 % 40))
    return {"question": WORDS[number % 17], "answer": "" if number % 11 == 3 else answer}


ROWS = [row(n) for n in range(120)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"limit": 50}, {"sample": 40, "seed": 3}, {"max_length": 60}, {"train_on": "all"}],
    ids=str,
)
def test_all_rows_looked_at_give_the_counts_of_the_scan(
    tmp_path: Path, model_folder: str, settings: dict[str, Any]
) -> None:
    given = {"model": model_folder, "rows_per_unit": 16, **settings}
    said = estimate(ROWS, **given, **RATE)
    counts = scan(ROWS, tmp_path / "s", **given).manifest["counts"]
    assert said.rows == said.sampled_rows == counts["rows"]
    assert said.units == -(-counts["rows"] // 16)
    assert {*said.trained_tokens} == {counts["trained_tokens"]}
    assert {*said.read_tokens} == {counts["tokens"]}
    assert said.rejected_share == counts["rejected"] / counts["rows"]
    assert counts["cut_examples"] > 0 or "max_length" not in settings


def test_a_sample_tells_its_uncertainty(model_folder: str) -> None:
    whole = estimate(ROWS, model=model_folder, **RATE)
    inside = 0
    for seed in range(40):
        said = estimate(ROWS, model=model_folder, estimate_rows=40, seed=seed, **RATE)
        assert said.sampled_rows == 40
        low, high = said.trained_tokens.low, said.trained_tokens.high
        inside += low <= whole.trained_tokens.value <= high
        assert said.trained_tokens != whole.trained_tokens
    assert inside >= 34  # of 38 expected; fewer by chance once in 70 times, and the seeds are fixed


def test_intervals_hold_95_of_100_times() -> None:
    random = np.random.default_rng(0)
    population = random.lognormal(4, 1, 3000)
    draws = [total(random.choice(population, 300, replace=False), 3000) for _ in range(2000)]
    truth = population.sum()
    share = np.mean([d.low <= truth <= d.high for d in draws])
    assert 0.92 < share < 0.97
    assert np.mean([d.value for d in draws]) == pytest.approx(truth, rel=0.005)
    exact = total(population, 3000)
    assert exact.low == pytest.approx(truth)
    assert exact.high == pytest.approx(truth)


def test_with_a_rate_no_weights_are_read_and_nothing_is_written(
    tmp_path: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    light = tmp_path / "light"
    shutil.copytree(model_folder, light, ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    said = estimate(ROWS, model=str(light), **RATE)
    assert said == replace(estimate(ROWS, model=model_folder, **RATE), model=said.model)
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    asked = ["scan", str(data), "--model", str(light), "--dry-run"]
    assert _run([*asked, "--tokens-per-second", "9"]) == 0
    assert not list((tmp_path / "here").iterdir())


# --- time and money ---


def test_hours_and_price(model_folder: str) -> None:
    tokens = estimate(ROWS, model=model_folder, tokens_per_second=10, price_per_hour=3, devices=4)
    hours = tokens.trained_tokens.value / 10 / 3600
    assert tokens.hours is not None
    assert tokens.price is not None
    assert tokens.hours.value == pytest.approx(hours / 4)
    assert tokens.price.value == pytest.approx(3 * hours)


def test_without_a_rate_some_rows_are_scored_to_find_one(
    model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = []
    before = Scorer.score

    def score(self: Scorer, unit: Unit, rows: Any) -> None:
        before(self, unit, rows)
        scored.append((unit, rows.counts["trained_tokens"], self.work))

    monkeypatch.setattr(Scorer, "score", score)
    said = estimate(ROWS, model=model_folder)
    ((unit, tokens, work),) = scored
    assert len(unit.records) == estimating.TIMED_ROWS
    assert said.measured
    assert tokens > 0
    seconds = said.hours.value * 3600
    assert seconds == pytest.approx(said.trained_tokens.value / said.tokens_per_second)
    assert work is None  # nothing is written


def test_a_reference_needs_more_disk(model_folder: str) -> None:
    plain, both = (
        estimate(ROWS, model=model_folder, reference=r, **RATE) for r in (None, model_folder)
    )
    assert both.disk_bytes.value > plain.disk_bytes.value


# --- the command ---


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return str(path)


def test_the_command_prints_words_or_json(
    data: str,
    model_folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    given = ["scan", data, "--model", model_folder, "--dry-run", "--out", str(tmp_path / "s")]
    more = ["--estimate-rows", "30", "--tokens-per-second", "9", "--price-per-hour", "2"]
    assert _run([*given, *more, "--devices", "8"]) == 0
    printed = capsys.readouterr().out
    for said in ("120 rows in 1 unit; 30 drawn at random", "(95 %:", "on 8 devices", "price"):
        assert said in printed
    (tmp_path / "c.yaml").write_text("dry-run: true\ntokens_per_second: 9\n")
    config = ["scan", data, "--model", model_folder, "--config", str(tmp_path / "c.yaml")]
    assert _run([*config, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 120
    assert found["trained_tokens"]["low"] == found["trained_tokens"]["value"] > 0
    assert _run([*given, "--tokens-per-second", "1", "--fail-if", "hours.high>0.01", "--json"]) == 3
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--price-per-hour", "2"], "--price-per-hour is a setting of the estimate: add --dry-run"),
        (["--dry-run", "--tokens-per-second", "0"], "--tokens-per-second"),
        (["--dry-run", "--tp"], "give --tokens-per-second"),
        (["--dry-run", "--estimate-rows", "3"], "--estimate-rows must be at least 30, found 3"),
        (["--dry-run", "--devices", "0"], "--devices"),
        (["--dry-run", "--max-length", "5000"], "--max-length 5000"),
        (["--dry-run", "--model", "./nowhere"], "./nowhere"),
        (["--dry-run", "--statistics", "entrpy"], "entrpy"),
        (["--dry-run", "--limit", "0"], "--limit"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(
    data: str,
    model_folder: str,
    given: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = [] if "--model" in given else ["--model", model_folder]
    assert _run(["scan", data, *model, *given, "--out", str(tmp_path / "s")]) == 2
    error = [text for text in capsys.readouterr().err.splitlines() if not text.startswith(NOTES)]
    assert len(error) == 1
    assert said in error[0]
    assert not (tmp_path / "s").exists()


def test_data_without_a_token_to_score_is_refused(model_folder: str) -> None:
    with pytest.raises(DataError, match="none of the 3 sampled rows"):
        estimate([{"question": "a", "answer": ""}] * 3, model=model_folder, **RATE)
    with pytest.raises(BadInput):
        estimate([], model=model_folder, **RATE)
