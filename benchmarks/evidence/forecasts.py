"""Forecasts, and the training that they are held against: exchange rates, and rows left out."""

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from eaft_probe import forecast
from eaft_probe.analysis.bootstrap import interval
from eaft_probe.analysis.scores import worst_rows
from evidence.bench import Bench, Row
from evidence.findings import Finding, over_seeds
from evidence.frontier import against_sft
from evidence.runs import Job, Rows, Variant, pooled, trained
from evidence.sources import drawn, gsm8k, retained
from evidence.stories import WORD, in_dialect, noisy, sampled

COUNTED = (
    *("sft", "eaft", "masked-sft", "clip", "focal"),
    *("dft", "idft", "deft", "chord", "profit"),
)
# The note of `asft` says that its anchor has no effect in a first step, so it does not count.
OBJECTIVES = (*COUNTED, "asft")
FOUR = ("sft", "eaft", "masked-sft", "dft")  # under the larger model
STEPS = ("plain", "preconditioned")
LEVELS = {"a quarter": 0.25, "half": 0.5}  # of what sft gains at its best learning rate
NEVER = 1e9  # the rate of what does not gain: the worst, and as bad as any other such
DRAWS = 2_000
SHARP = 0.5  # temperature of the stories in which sharpening is what can be learned
NOISY = 4  # one row in so many has noise
ALL, RANDOM = "all rows", "at random"
LEFT_OUT = {
    "retain_alignment": "by alignment",
    "conflict_share": "by conflict share",
    "mean_nll": "by nll",
    "max_surprise": "by surprise",
}


# --- the rows ---


@dataclass(frozen=True)
class Split:
    """One seed's rows, all disjoint: what is trained; held-out and retained rows of the forecast;
    and in `fresh` others, on which training is measured."""

    trained: str
    held_out: str
    retained: str
    fresh: Rows


Target = Callable[[list[Row], list[Row], int, random.Random], tuple[list[Row], list[Row]]]


def swapped(own: list[Row], sharp: list[Row], count: int, random_: random.Random) -> Any:
    """Stories in which words that the model is sure of are replaced throughout."""
    told = [in_dialect(story) for story in own]
    return told[:count], told[count:]


def noise(own: list[Row], sharp: list[Row], count: int, random_: random.Random) -> Any:
    """Stories drawn at a low temperature, a fifth of the words of every fourth exchanged for
    others; those held out are clean."""
    words = [word for row in sharp for word in WORD.findall(row["completion"])]
    dirty = [noisy(s, words, random_) if i % NOISY == 0 else s for i, s in enumerate(sharp)]
    return dirty[:count], sharp[count:]


TARGETS: dict[str, Target] = {"swapped words": swapped, "noise": noise}


def split(bench: Bench, target: str, seed: int, count: int, retain_sharp: bool) -> Split:
    """The seed's draw from the model's stories. Retained are its own stories, or with
    `retain_sharp` those of a low temperature, on which the gradient is not 0 on average."""
    random_ = random.Random(seed)
    own, sharp = sampled(bench), sampled(bench, SHARP)
    random_.shuffle(own)
    random_.shuffle(sharp)
    rows, others = TARGETS[target](own, sharp, count, random_)
    kept = (sharp if retain_sharp else own)[count + 2 * bench.form.held_out :]
    name = f"{target}-{seed}-{count}-{retain_sharp:d}".replace(" ", "-")
    return _written(bench, name, rows, others, kept)


def _written(bench: Bench, name: str, rows: list[Row], others: list[Row], kept: list[Row]) -> Split:
    """Rows to train, and others and retained ones: half for the forecast, half for training."""
    a, b = bench.form.held_out, bench.form.retained
    if len(others) < 2 * a or len(kept) < 2 * b:
        raise SystemExit(f"{name}: {len(others)} and {len(kept)} rows are too few for a split")
    sets = (rows, others[:a], kept[:b], others[a : 2 * a], kept[b : 2 * b])
    files = [str(bench.rows(f"{name}-{i}", rows)) for i, rows in enumerate(sets)]
    return Split(*files[:3], Rows(files[0], *files[3:], None))


def forecast_of(
    bench: Bench, s: Split, objectives: tuple[str, ...], step: str = "plain", model: str = ""
) -> Any:
    """Of a split, under the story model or another; a preconditioned one takes the scan and the
    alignment of the plain one."""
    folder = bench.out / "forecasts" / Path(s.trained).stem
    made = partial(
        forecast,
        s.trained,
        model=model or bench.stories,
        retain_data=s.retained,
        eval_data=s.held_out,
        objective=list(objectives),
        threads=1,
    )
    plain = made(folder)
    if step == "plain":
        return plain
    return made(f"{folder}-{step}", step=step, scan=str(plain.scan.path))


# --- exchange rates ---


@dataclass(frozen=True)
class Cell:
    """One target and seed: what was forecast by each kind of step, and the runs."""

    target: str
    said: dict[str, pandas.DataFrame]
    runs: pandas.DataFrame

    def trained(self, objective: str, level: float) -> float:
        """The KL for that part of sft's best gain, over sft's; ∞ where it is never gained."""
        rate = against_sft(self.runs, objective, level)
        return rate if math.isfinite(rate) else math.inf

    def forecast(self, step: str, objective: str, figure: str = "exchange_rate") -> float:
        """∞ where there is no gain and so no rate."""
        rows = self.said[step]
        value = rows[rows["objective"].str.split().str[0] == objective][figure].iloc[0]
        return math.inf if pandas.isna(value) else float(value)


def exchange_rates(bench: Bench) -> Iterator[Finding]:
    """Of each target its rates, forecast and trained; then how well they agree."""
    cells = _cells(bench)
    for target in TARGETS:
        yield from _rates([c for c in cells if c.target == target], OBJECTIVES)
    for targets in ([t] for t in (*TARGETS, None)):
        mine = [c for c in cells if targets == [None] or c.target in targets]
        yield from _agreement(mine, targets[0] or "both", COUNTED)


def larger_model(bench: Bench) -> Iterator[Finding]:
    """The same of SmolLM2 on GSM8K, with texts to be retained: four objectives and one seed."""
    form = bench.form
    rows = drawn(gsm8k(bench.data), form.trained + 2 * form.held_out)
    kept = drawn(retained(bench.data), 2 * form.retained)
    s = _written(bench, "gsm8k", rows[: form.trained], rows[form.trained :], kept)
    made = {step: forecast_of(bench, s, FOUR, step, bench.model) for step in STEPS}
    on = replace(s.fresh, base_scan=str(made["plain"].scan.path))
    jobs = [
        replace(_job(bench, objective, rate, 0, on, "gsm8k"), model=bench.model)
        for objective in FOUR
        for rate in form.learning_rates
    ]
    runs = pandas.DataFrame(trained(bench, jobs))
    cells = [Cell("GSM8K", {step: f.table for step, f in made.items()}, runs)]
    yield from _rates(cells, FOUR)
    yield from _agreement(cells, "GSM8K", FOUR)


def _cells(bench: Bench) -> list[Cell]:
    sampled(bench), sampled(bench, SHARP)  # by one process
    places = [(target, seed) for target in TARGETS for seed in range(bench.form.seeds)]
    made = list(pooled(bench, partial(_said, bench), places))
    bench.tell("the forecasts are made")
    jobs = [
        _job(bench, objective, rate, seed, rows, target)
        for (target, seed), (_, rows) in zip(places, made, strict=True)
        for objective in OBJECTIVES
        for rate in bench.form.learning_rates
    ]
    runs = pandas.DataFrame(trained(bench, jobs))
    runs = [of for _, of in runs.groupby(np.arange(len(runs)) * len(places) // len(runs))]
    return [Cell(t, said, of) for (t, _), (said, _), of in zip(places, made, runs, strict=True)]


def _said(bench: Bench, place: tuple[str, int]) -> tuple[dict[str, pandas.DataFrame], Rows]:
    """The forecasts by kind of step, and the rows on which training is measured."""
    s = split(bench, *place, bench.form.trained, False)
    made = {step: forecast_of(bench, s, OBJECTIVES, step) for step in STEPS}
    scan = str(made["plain"].scan.path)
    return {step: f.table for step, f in made.items()}, replace(s.fresh, base_scan=scan)


def _job(bench: Bench, objective: str, rate: float, seed: int, rows: Rows, name: str) -> Job:
    folder = str(bench.out / "runs" / name.replace(" ", "-"))
    epochs = bench.form.epochs
    return Job(Variant(objective), rate, seed, rows, bench.stories, epochs, 10**6, folder)


def _rates(cells: list[Cell], objectives: tuple[str, ...]) -> Iterator[Finding]:
    """Geometric means over the seeds that have a rate, of each objective but sft, the first."""
    for objective in objectives[1:]:
        row = f"{cells[0].target}: {objective}"
        for step in cells[0].said:
            rates = [c.forecast(step, objective) for c in cells]
            yield over_seeds(0, row, f"forecast, {step}", rates, "×")
        for name, level in LEVELS.items():
            rates = [c.trained(objective, level) for c in cells]
            yield over_seeds(0, row, f"trained, at {name}", rates, "×")


def _agreement(cells: list[Cell], name: str, objectives: tuple[str, ...]) -> Iterator[Finding]:
    for level, share in LEVELS.items():
        came = np.array([[c.trained(o, share) for o in objectives] for c in cells])
        for step in cells[0].said:
            row = f"{name}, {step} step, at {level} of sft's gain"
            said, low, high = (
                np.array([[c.forecast(step, o, figure) for o in objectives] for c in cells])
                for figure in ("exchange_rate", "exchange_rate_low", "exchange_rate_high")
            )
            yield Finding(0, row, "Kendall's τ", *tau_interval(said, came))
            both = np.isfinite(said) & np.isfinite(came)
            both[:, 0] = False  # sft's rate is 1 by definition
            inside = both & (low <= came) & (came <= high)
            yield Finding(0, row, "rates on both sides", float(both.sum()), math.nan, math.nan)
            yield Finding(0, row, "trained rate in the interval", *_share(inside, both), "%")


def _share(inside: np.ndarray, of: np.ndarray) -> tuple[float, float, float]:
    """(C, O) → the share, and its interval over the cells, C."""
    weights = np.random.default_rng(0).multinomial(len(of), np.full(len(of), 1 / len(of)), DRAWS)
    drawn = (weights @ inside.sum(1)) / np.maximum(weights @ of.sum(1), 1)
    return (float(inside.sum() / of.sum()) if of.any() else math.nan, *interval(drawn))


def tau_interval(said: np.ndarray, came: np.ndarray) -> tuple[float, float, float]:
    """(C, O) rates each → Kendall's τ_b over all pairs of objectives within a cell, and the middle
    95 % of draws of cells and of objectives, both with replacement."""
    signs = [np.sign(x[:, :, None] - x[:, None, :]) for x in (_finite(said), _finite(came))]
    products = signs[0] * signs[1], signs[0] ** 2, signs[1] ** 2
    cells, objectives = said.shape
    random_ = np.random.default_rng(0)
    draws = [
        random_.multinomial(n, np.full(n, 1 / n), DRAWS).astype(float) for n in (cells, objectives)
    ]

    def tau(of_cell: np.ndarray, of_objective: np.ndarray) -> float:
        of_pair = of_objective[:, None] * of_objective[None, :]
        both, x, y = (float((np.tensordot(of_cell, p, 1) * of_pair).sum()) for p in products)
        return both / math.sqrt(x * y) if x * y else math.nan

    drawn = np.array([tau(c, o) for c, o in zip(*draws, strict=True)])
    return (tau(np.ones(cells), np.ones(objectives)), *interval(drawn[np.isfinite(drawn)]))


def _finite(rates: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(rates), rates, NEVER)


# --- rows left out ---


def rows_left_out(bench: Bench, seeds: int, count: int, share: float) -> Iterator[Finding]:
    """sft without the worst rows by each score, against without as many at random."""
    sampled(bench), sampled(bench, SHARP)  # by one process
    places = [(target, seed) for target in TARGETS for seed in range(seeds)]
    work = partial(_left_out, bench, count, round(share * count))
    jobs = [job for jobs in pooled(bench, work, places) for job in jobs]
    bench.tell("the forecasts of rows are made")
    runs = pandas.DataFrame(trained(bench, jobs))
    names = [Path(job.folder).name.split("--") for job in jobs]
    runs["target"], runs["left out"] = zip(*names, strict=True)
    for target in TARGETS:
        yield from _differences(target, runs[runs["target"] == target.replace(" ", "-")])


def _left_out(bench: Bench, count: int, most: int, place: tuple[str, int]) -> list[Job]:
    s = split(bench, *place, count, True)
    scan = forecast_of(bench, s, ("sft",)).scan
    out = {LEFT_OUT[n]: [row for row, _ in worst_rows(scan, n, most)] for n in LEFT_OUT}
    out |= {ALL: [], RANDOM: random.Random(place[1]).sample(range(count), most)}
    return [_without(bench, s, *place, *of) for of in out.items()]


def _without(bench: Bench, s: Split, target: str, seed: int, kind: str, rows: list[int]) -> Job:
    all_rows = Path(s.trained).read_text().splitlines()
    kept = [json.loads(line) for i, line in enumerate(all_rows) if i not in set(rows)]
    name = f"{target}--{kind}".replace(" ", "-")
    file = str(bench.rows(f"{name}-{seed}", kept))
    rate = bench.form.learning_rates[1]
    return _job(bench, "sft", rate, seed, replace(s.fresh, trained=file), name)


def _differences(target: str, runs: pandas.DataFrame) -> Iterator[Finding]:
    runs = runs.set_index(["left out", "seed"])
    for kind in (ALL, *LEFT_OUT.values()):
        row, name = f"{target}: {kind}", kind.replace(" ", "-")
        for column, title in (("retain_rise", "retained nll"), ("learned", "gain on held-out")):
            off = runs[column][name] - runs[column][RANDOM.replace(" ", "-")]
            yield over_seeds(0, row, f"{title} against at random, nats", off.tolist())
