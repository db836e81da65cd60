"""Figures to be drawn for a test, and what they are drawn from."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import scans_made

from eaft_probe import Scan
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.view.plots import PLOTS, Chart

RULE = ConflictRule(0.8, 0.25)
HOSTILE = "$x_1^{ 数据 🙂 \u202e\u200b \0 \n \\frac{ " + "y" * 300
WORDS = ["$x_1^{", "数据", "🙂", "\u202ea", "\0", "\n", "_b", " ", "'\"", "%s", "$", "ünï"]
FILE_DPI = 300  # of files; `coarse_pixels` lowers it for their bytes alone
LOG = {
    "run": "r",
    "tokens_seen": 0,
    "lr": 1e-5,
    "nll": 1.0,
    "loss": 1.0,
    "gate_mean": 1.0,
    "mass_gated": 0.0,
    "eval_nll": 1.0,
    "retain_nll": 1.0,
    "retain_kl": 0.0,
}
Subjects = Callable[[str], list[Any]]
Charts = Callable[[str], Chart]


def subject(name: str, scan: Scan, run: Path) -> list[Any]:
    (given,) = (p.name for p in parameters(name) if p.kind is p.VAR_POSITIONAL)
    if given == "forecasts":
        folder = scan.path.with_name("forecast")
        return [Scan.open(folder) if folder.exists() else scans_made.forecast_of(scan, folder)]
    return {"scans": [scan], "runs": [run], "pair": [scan, scan]}[given]


def parameters(name: str) -> list[inspect.Parameter]:
    return list(inspect.signature(PLOTS[name]).parameters.values())


def of_scans() -> list[str]:
    return [n for n in PLOTS if any(p.name == "scans" for p in parameters(n))]


def logged(
    folder: Path,
    name: str = "eaft",
    groups: Sequence[str] = ("all", "high", "low", "conflict"),
    steps: Sequence[int] = (0, 10, 20),
    **fields: Any,
) -> Path:
    """A training run's log, as DESIGN section 6 lists its columns."""
    rows = [
        {"step": s, "group": g, "group_count": 5 + i, "group_nll": 3.0 / (s + 1 + i)}
        for s in steps
        for i, g in enumerate(groups)
    ]
    folder.mkdir(exist_ok=True)
    pandas.DataFrame(rows).assign(**{**LOG, "objective": name, **fields}).to_parquet(
        folder / "log.parquet"
    )
    return folder


def flagged(tokens: pandas.DataFrame, rule: ConflictRule = RULE) -> pandas.Series:
    below = np.float32([rule.entropy_below, rule.prob_below])
    return (tokens["entropy"] < below[0]) & (tokens["prob"] < below[1])


def drawn(chart: Chart) -> Chart:
    """With every text measured: whatever would warn does."""
    chart.draw_without_rendering()
    return chart


def fitting(chart: Chart) -> Chart:
    """Every text is measured, and nothing is cut off in a file: at less dots an inch, glyphs are
    rounded up."""
    chart.lay_out()
    chart.set_dpi(FILE_DPI)
    box, size = chart.get_tightbbox(), chart.get_size_inches()
    assert (box.min > -0.05).all()
    assert (box.max < size + 0.05).all()  # inches
    return chart


def caption(chart: Chart) -> str:
    return " ".join(chart.get_supxlabel().split())


def nudged(tokens: pandas.DataFrame) -> pandas.DataFrame:
    """The same labels under a model that moved a little."""
    random = np.random.default_rng(7)
    moved = tokens["logprob"] + random.normal(0.1, 0.9, len(tokens))
    logprob = np.minimum(moved, -1e-6).astype(np.float32)
    entropy = (tokens["entropy"] * random.uniform(0.5, 1.3, len(tokens))).astype(np.float32)
    return tokens.assign(logprob=logprob, prob=np.exp(logprob), entropy=entropy)
