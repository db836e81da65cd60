"""Statistics, scores, formats, objectives, plots and engines are added in one place each."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from eaft_probe import Scan, engines, scan
from eaft_probe.analysis.scores import SCORES, Score
from eaft_probe.cli import _run
from eaft_probe.columns.statistics import STATISTICS, Statistic
from eaft_probe.data.formats import FORMATS, Example, row_format
from eaft_probe.data.formats.pairs import pair
from eaft_probe.data.messages import Spelling
from eaft_probe.engines import ENGINES
from eaft_probe.objectives.gates import OBJECTIVES, Objective
from eaft_probe.objectives.gates.entry import entry
from eaft_probe.view.labels import caption
from eaft_probe.view.plots import PLOTS, Chart, plot
from eaft_probe.view.plots.chart import new_chart, open_scans

ENGINE = """
def run(job):
    scorer = job.load(job.progress, job.device)
    for unit in reversed(list(job.begin(scorer.facts))):
        scorer.score(unit, scorer.read(unit))
"""


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were, after each test."""
    monkeypatch.setenv("COLUMNS", "150")
    for registry in (STATISTICS, SCORES, FORMATS, OBJECTIVES, PLOTS, ENGINES):
        monkeypatch.setattr(registry, "_entries", dict(registry))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [{"riddle": f"what is {n}", "solution": f"it is {n} and no more"} for n in range(5)]
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture(scope="module")
def finished(data: str, model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    out = tmp_path_factory.mktemp("scan") / "s"
    named = {"question": "riddle", "answer": "solution"}
    return scan(data, out, model=model_folder, columns=named, rows_per_unit=2)


def listed(what: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert _run(["list", what]) == 0
    return capsys.readouterr().out


def test_a_format(
    data: str, model_folder: str, tmp_path: Path, capsys: Any, finished: Scan
) -> None:
    @row_format("riddle", "riddle solution", "a riddle and its solution")
    def read(row: Mapping[str, Any], spelling: Spelling) -> Example:
        return pair(row, spelling, "riddle", "solution")

    out = tmp_path / "s"
    assert _run(["scan", data, "--model", model_folder, "--out", str(out)]) == 0
    assert Scan.open(out).manifest["data"]["format"] == "riddle"
    assert len(Scan.open(out).tokens()) == len(finished.tokens())
    assert "a riddle and its solution" in listed("formats", capsys)


def test_a_statistic(data: str, model_folder: str, tmp_path: Path, capsys: Any) -> None:
    squared = Statistic("squared", "", "p²", lambda d: (2 * d.logprob).exp(), default=False)
    STATISTICS.add("squared", squared)
    named = ["--columns", "question=riddle,answer=solution", "--statistics", "squared"]
    out = tmp_path / "s"
    assert _run(["scan", data, "--model", model_folder, "--out", str(out), *named]) == 0
    tokens = Scan.open(out).tokens(["prob", "squared"])
    np.testing.assert_allclose(tokens["squared"], tokens["prob"] ** 2, rtol=1e-5)
    assert "p² (on request)" in listed("statistics", capsys)


def test_a_score(finished: Scan, tmp_path: Path, capsys: Any) -> None:
    least = Score("least", "nats", "a mean nll", ("logprob",), lambda r: r.mean(r.nll))
    SCORES.add("least", least)
    assert "a mean nll" in listed("scores", capsys)
    out = tmp_path / "o.jsonl"
    chosen = ["--out", str(out), "--where", "probe_least > 0"]
    assert _run(["export", str(finished.path), *chosen]) == 0
    assert [json.loads(line)["riddle"] for line in out.open()] == [f"what is {n}" for n in range(5)]
    assert _run(["show", str(finished.path), "--rank-by", "least"]) == 0
    assert "least " in capsys.readouterr().out


def test_an_objective(finished: Scan, tmp_path: Path, capsys: Any) -> None:
    @entry
    @dataclass(frozen=True)
    class Tenth(Objective):
        """A constant gate."""

        name, formula = "tenth", "g"
        g: float = 0.1

        def __call__(self, columns: Mapping[str, Any]) -> Any:
            return 0 * columns["prob"] + self.g

    files = ["--out", str(tmp_path / "f.svg"), "--data", str(tmp_path / "d.csv")]
    given = ["--objective", "tenth", "--set", "g=0.25", *files]
    assert _run(["plot", "gates", str(finished.path), *given]) == 0
    table = pandas.read_csv(tmp_path / "d.csv").set_index("group")
    assert table["mean_gate"]["all"] == 0.25
    assert "g=0.1" in listed("objectives", capsys)


def test_a_plot(finished: Scan, tmp_path: Path, capsys: Any) -> None:
    @plot
    def ranks(*scans: Scan | str | Path, style: str = "dots") -> Chart:
        """The rank of each label."""
        (opened,) = open_scans(scans)
        data = opened.tokens(["rank"])
        with new_chart(2, 2, data, caption([opened]), is_table=True) as chart:
            chart.subplots().plot(data["rank"], "." if style == "scatter" else "o")
        return chart

    out = tmp_path / "f.png"
    command = ["plot", "ranks", str(finished.path), "--out", str(out)]
    out.write_text("not a figure")
    assert _run(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert _run([*command, "--overwrite", "--style", "scatter"]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == ["rank", *(f"{r:,}" for r in finished.tokens()["rank"]), str(out)]
    assert out.read_bytes().startswith(b"\x89PNG")
    assert _run([*command, "--delta", "1"]) == 2
    assert "plot ranks has no --delta; it takes --style" in capsys.readouterr().err
    assert "The rank of each label." in listed("plots", capsys)


def test_an_engine(
    data: str, model_folder: str, finished: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "backwards.py").write_text(ENGINE)
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(tmp_path)])
    out = tmp_path / "s"
    named = ["--columns", "question=riddle,answer=solution", "--rows-per-unit", "2"]
    command = ["scan", data, "--model", model_folder, "--out", str(out), *named]
    assert _run([*command, "--engine", "backward"]) == 2
    assert _run([*command, "--engine", "backwards"]) == 0
    parts = [p["sha256"] for p in Scan.open(out).manifest["parts"]]
    assert parts == [p["sha256"] for p in finished.manifest["parts"]]
    assert len(parts) == 3
