"""Somebody's answers and the model's own to the same prompts, both scored: claims 1 and 2."""

import json
from collections.abc import Iterator

import numpy as np
import pandas

from eaft_probe import Scan, rollout, scan
from eaft_probe.analysis.bootstrap import interval, resampled
from eaft_probe.columns.statistics import TOP_K
from evidence.bench import Bench
from evidence.findings import SHARE, Finding, over_seeds
from evidence.sources import ANSWERED, drawn

KS = sorted({20, *TOP_K})
# Pearson's r with exact entropy by K, read off arXiv 2601.02151, Fig. 6.
PAPER_TOPK = {f"K = {k}": {5: "0.979", 10: "0.995", 20: "0.999"}.get(k, "1.000") for k in KS}
# Fig. 1b there is two clouds of points without a figure.
PAPER_CONFLICTS = dict.fromkeys(ANSWERED, "many in the data, few in rollouts")


def supervised(bench: Bench, name: str) -> Scan:
    """The data's answers: `prompts` rows a seed, one seed behind another."""
    rows = drawn(ANSWERED[name](bench.data), bench.form.seeds * bench.form.prompts)
    return scan(
        str(bench.rows(name, rows)),
        bench.out / "scans" / name,
        model=bench.model,
        statistics=[f"entropy_top{k}" for k in TOP_K],
    )


def own(bench: Bench, name: str) -> Scan:
    """The model's answers to the prompts of `supervised`; a seed's rows are a unit, so that each
    seed draws from random numbers of its own."""
    form = bench.form
    done = rollout(
        str(bench.out / "data" / f"{name}.jsonl"),
        bench.out / "rollouts" / f"{name}.jsonl",
        model=bench.model,
        max_new_tokens=form.new_tokens,
        rows_per_unit=form.prompts,
        batch_size=form.prompts,
    )
    return scan(
        str(done.path), bench.out / "scans" / f"{name}-own", model=bench.model, keep=["row"]
    )


def answers(scan: Scan, bench: Bench, columns: list[str]) -> pandas.DataFrame:
    """The tokens that count: of each answer the first `new_tokens`, with their `seed`."""
    frame = scan.tokens(["example", *columns])
    examples = scan.examples().set_index("example")
    rows = examples["row"].map(json.loads) if "row" in examples else examples.index.to_series()
    frame["seed"] = frame["example"].map(rows) // bench.form.prompts
    return frame[frame.groupby("example").cumcount() < bench.form.new_tokens]


def conflict_shares(bench: Bench) -> Iterator[Finding]:
    """Claim 1: conflicts in supervised data against the model's own rollouts."""
    for name in ANSWERED:
        scans = supervised(bench, name), own(bench, name)
        frames = [answers(s, bench, ["conflict"]) for s in scans]
        theirs, ours = (f.groupby("seed")["conflict"].mean() for f in frames)
        yield over_seeds(1, name, "data", theirs.tolist(), "%", SHARE)
        yield over_seeds(1, name, "rollouts", ours.tolist(), "%", SHARE)
        yield over_seeds(1, name, "difference, points", (theirs - ours).tolist(), "%")
        yield _ratio(name, frames)


def _ratio(name: str, frames: list[pandas.DataFrame]) -> Finding:
    """Over examples: a seed's few rollouts may have no conflict at all, and no ratio then."""
    sums = [f.groupby("example")["conflict"].agg(["sum", "count"]).to_numpy(float) for f in frames]
    a, b = (_share(s.sum(0)) for s in sums)
    made = [_share(resampled(s, [0, at]).T) for at, s in enumerate(sums)]
    with np.errstate(divide="ignore"):
        low, high = interval(made[0] / made[1])
        value = float(a / b)
    return Finding(1, name, "data / rollouts, over examples", value, low, high, "×")


def _share(sums: np.ndarray) -> np.ndarray:
    return sums[0] / sums[1]


def topk_correlations(bench: Bench) -> Iterator[Finding]:
    """Claim 2: Pearson's r of the entropy of the K likeliest tokens with the full one."""
    frames = [
        answers(supervised(bench, name), bench, ["entropy", *_columns()]) for name in ANSWERED
    ]
    seeds = [g for _, g in pandas.concat(frames).groupby("seed")]
    for k, column in zip(KS, _columns(), strict=True):
        r = [g["entropy"].astype(float).corr(g[column].astype(float)) for g in seeds]
        yield over_seeds(2, f"K = {k}", "r", r, within=SHARE)


def _columns() -> list[str]:
    return [f"entropy_top{k}" for k in KS]
