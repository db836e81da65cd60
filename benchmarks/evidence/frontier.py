"""What is forgotten for what is learned, over learning rates: claims 4 and 5 from the runs."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas

from eaft_probe.view.plots.chart import COLOURS, Chart, new_chart
from evidence.findings import Finding, over_seeds

SFT = "sft"
BEST = {
    "learned": "learned, nats",
    "kl": "KL from the base, nats",
    "retain_rise": "rise of the retained nll, nats",
}
LEVELS = {"half": 0.5, "nine tenths": 0.9}  # of what SFT learns at its best learning rate
# General ability lost by Qwen3-4B-Instruct, Table 1 of arXiv 2601.02151: another measure of it.
PAPER_FORGOT = {
    "sft": "−4.6 points",
    "masked-sft": "−2.7 points",
    "eaft": "−1.0 points",
    "dft": "−3.0 points",
    "talr": "−4.9 points",
    "flow": "−2.0 points",
    "sft-kl": "−1.5 points",
}
# Losses of the groups before and after training, read off Fig. 4 there.
PAPER_DYNAMICS = {
    "sft, high": "2.36 → 0.28",
    "eaft, high": "2.36 → 0.22",
    "sft, low": "0.35 → 0.05",
    "eaft, low": "0.35 → 0.13",
}


def frontier(records: list[dict[str, Any]]) -> Iterator[Finding]:
    """Claim 4. Of each objective the learning rate at which the target's nll falls the most, and
    its KL against SFT's where both have learned the same."""
    runs = pandas.DataFrame(records).sort_values("learning_rate")
    seeds = sorted(set(runs["seed"]))
    for variant in dict.fromkeys(r["variant"] for r in records):
        mine = runs[runs["variant"] == variant]
        best = mine.loc[mine.groupby("seed")["learned"].idxmax()]
        for column, name in BEST.items():
            yield over_seeds(4, variant, name, best[column].tolist())
        for said, level in LEVELS.items():
            ratios = [against_sft(runs[runs["seed"] == s], variant, level) for s in seeds]
            yield over_seeds(4, variant, f"KL / sft's at {said}", ratios, "×")


def against_sft(runs: pandas.DataFrame, variant: str, level: float) -> float:
    """KL over SFT's where both learned `level` of SFT's best; NaN where it never learns that."""
    sft, mine = (runs[runs["variant"] == name] for name in (SFT, variant))
    learned = level * max(sft["learned"])
    return _kl_at(mine, learned) / _kl_at(sft, learned) if learned > 0 else math.nan


def _kl_at(line: pandas.DataFrame, learned: float) -> float:
    """√KL grows with the step as the fall of the nll does, so it is drawn in straight lines from
    (0, 0) through the rising learning rates, up to the one that learned the most."""
    rising = line.iloc[: int(line["learned"].to_numpy().argmax()) + 1]
    x = np.maximum.accumulate([0.0, *rising["learned"]])
    y = np.sqrt([0.0, *rising["kl"]])
    return float(np.interp(learned, x, y) ** 2) if learned <= x[-1] else math.nan


def dynamics(records: list[dict[str, Any]]) -> Iterator[Finding]:
    """Claim 5. The groups' nll in the first and the last pass, at the learning rate at which SFT
    learned the most; each group is the base model's and the nll is not gated."""
    runs = pandas.DataFrame(records)
    rate = runs[runs["variant"] == SFT].groupby("learning_rate")["learned"].mean().idxmax()
    for group in ("high", "low", "conflict"):
        for variant in (SFT, "eaft"):
            at = runs[(runs["variant"] == variant) & (runs["learning_rate"] == rate)]
            ends = zip(*(_ends(passes, group) for passes in at["passes"]), strict=True)
            for said, values in zip(("first", "last"), ends, strict=True):
                column = f"nll in the {said} pass at {rate:g}, nats"
                yield over_seeds(5, f"{variant}, {group}", column, values)


def _ends(passes: list[dict[str, Any]], group: str) -> tuple[float, float]:
    found = [p["group_nll"] for p in passes if p["group"] == group]
    return (found[0], found[-1]) if found else (math.nan, math.nan)


# --- the picture ---


def picture(records: list[dict[str, Any]], note: str = "") -> Chart:
    """A panel for each objective beside SFT in grey: KL over what was learned, a line a seed."""
    runs = pandas.DataFrame(records).drop(columns="passes").sort_values("learning_rate")
    others = [v for v in dict.fromkeys(r["variant"] for r in records) if v != SFT]
    rows = math.ceil(len(others) / 4)
    with new_chart(6.8, 0.4 + 1.45 * rows, runs, note) as chart:
        panels = chart.subplots(rows, 4, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, variant in zip(panels, others, strict=False):
            _lines(axes, runs, SFT, "#999999")
            _lines(axes, runs, variant, COLOURS[0])
            axes.set_title(variant)
            axes.set_yscale("log")
        _limits(panels[0], runs)
        for empty in panels[len(others) :]:
            empty.set_visible(False)
        for lowest in panels[max(0, len(others) - 4) : len(others)]:
            lowest.tick_params(labelbottom=True)
            lowest.set_xlabel("fall of the target's nll, nats")
        chart.supylabel("KL(base ‖ model) on retained data, nats", fontsize=7.5)
    return chart


def _lines(axes: Any, runs: pandas.DataFrame, variant: str, colour: str) -> None:
    for _, line in runs[runs["variant"] == variant].groupby("seed"):
        axes.plot(line["learned"], line["kl"], "o-", color=colour, ms=2, lw=0.7)


def _limits(axes: Any, runs: pandas.DataFrame) -> None:
    """What collapsed lies off the left edge: it unlearned more than twice what was ever learned."""
    most = float(runs["learned"].max())
    axes.set_xlim(max(float(runs["learned"].min()), -2 * most) - 0.05 * most, 1.1 * most)
