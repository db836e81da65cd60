"""What `eaft-probe forecast` says, held against training: one command, six stages.

    python benchmarks/forecast.py --data DATA --stories stories260K --out forecasts

Every stage keeps what it has done in --out, so a stopped run goes on with the same command, prints
its table and leaves it as STAGE.json. --data is a folder with gsm8k/train.jsonl as published.
--quick runs everything tiny, to see that it runs: its figures mean nothing.

The protocol, written before the run that is reported:

tau. stories260K; two targets, three seeds, each a draw from 384 of the model's own stories: (1)
with words swapped throughout (claims.py's dialect), (2) drawn at temperature 0.5, a fifth of the
words of every fourth row exchanged for others, held-out rows clean. 32 rows are trained; retained
are own stories at temperature 1, cost is KL. The forecast measures on 24 held-out and 24 retained
rows, training on 24 and 24 others. Training: AdamW, 2 passes, 4 rows a step, learning rates 5e-5
and 2e-4; √KL over gain is drawn in straight lines from (0, 0). An objective's rate is its KL over
sft's where both gain a quarter, or half, of sft's best gain; half is what counts. What never gains
that, or has no forecast rate, has rate ∞; two such are tied. Kendall's τ_b of forecast and trained
rates over the 10 objectives with a first-order effect, pairs within a target and a seed; its
interval is over draws of objectives and of cells (a target and seed). Coverage: of the rates that
are finite on both sides, sft's left out, how many trained ones lie in the forecast's own interval.
The step with the larger τ at half over both targets is the better one; a difference below 0.05 is
none.

larger. The same of SmolLM2 on GSM8K: 16 rows, texts (WikiText-2, MMLU, IFEval) to be retained, 10
held-out and 10 retained rows for each side, learning rates 1e-5 and 4e-5, four objectives, one
seed: six pairs, which is an example and no proof.

rows. The same targets, 80 rows, five seeds, retained: stories at temperature 0.5 (on the model's
own the gradient is 0 on average, and alignment says nothing). The worst 4 rows by each score are
left out and the rest is trained with sft, 2 passes at 2e-4. Against 4 rows left out at random:
differences of the change of retained nll and of the gain, with Student's interval. Alignment beats
random if the interval of the retained nll lies below 0.

audit. claims.py's changed numbers (GSM8K, SmolLM2) and names (own stories, stories260K), 30 and 45
rows a part, three parts in place of seeds. Tokens: precision and recall of each score at as many as
the flags of two rules have, entropy and probability, and surprise calibrated to flag 1 % of the
model's own samples; AUROC. Rows: AUROC of every row score. Alignment is measured on the stories
alone. "Finds best" is the largest mean of the AUROC of rows over both data sets.

calibration. Two sets of samples (temperature 1, top-p 1) of a model: one sets the threshold of
surprise for a rate, the other is flagged. Both are resampled over examples for the interval of the
difference between the flagged shares.

cost. CPU seconds of a scan, of the two perturbed scans of a direction, of the gradient and of four
checks, the least of eight rounds; peak memory of a forecast and of a scan in fresh processes,
against the weights of the model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from evidence.audit import Audited, against, auroc, names, numbers
from evidence.bench import FORMS, Bench, Row
from evidence.findings import SHARE, Finding, over_seeds, table
from evidence.forecasts import exchange_rates, larger_model, rows_left_out
from evidence.sources import drawn, gsm8k
from evidence.stories import NAMES, WHO, sampled

from eaft_probe import Scan, forecast, rollout, scan
from eaft_probe.analysis.bootstrap import interval, resampled
from eaft_probe.analysis.calibration import calibrated
from eaft_probe.analysis.scores import available_scores, row_scores
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.errors import ProbeError, one_line

FULL = replace(
    FORMS["quick"],
    prompts=48,
    new_tokens=64,
    stories=384,
    story_tokens=160,
    trained=32,
    held_out=24,
    retained=24,
    epochs=2,
    learning_rates=(5e-5, 2e-4),
    audited=30,
)
QUICK = replace(
    FULL, seeds=1, prompts=4, new_tokens=32, stories=128, story_tokens=40, audited=12, epochs=1
)
QUICK = replace(QUICK, trained=12, held_out=10, retained=10, learning_rates=(1e-4, 3e-4))
LARGER = {"trained": 16, "held_out": 10, "retained": 10, "learning_rates": (1e-5, 4e-5)}
QUICK_LARGER = {"trained": 4, "held_out": 10, "retained": 10, "learning_rates": (1e-5,)}
ROWS = {"seeds": 5, "count": 80, "share": 0.05}
QUICK_ROWS = {"seeds": 2, "count": 20, "share": 0.1}
RATES = (0.01, 0.003)
FLAGGED = 0.01  # of the model's own tokens, by the calibrated rule of the audit
NAMED = 1.5  # rows of stories for each row of GSM8K in the audit


# --- the models' own samples ---


def own(bench: Bench, name: str, seed: int) -> Scan:
    """A scan of the model's answers, drawn anew for each `seed`."""
    form, stories = bench.form, name == "stories"
    prompts: list[Row] = drawn(gsm8k(bench.data), form.prompts)
    if stories:
        openings = [
            f"Once upon a time, there was a little {w} named {n}." for n in NAMES for w in WHO
        ]
        prompts = [{"prompt": o, "completion": ""} for o in openings]
    file = bench.rows(f"prompts-{name}", prompts)
    folder = bench.out / "scans" / f"own-{name}-{seed}"
    model = bench.stories if stories else bench.model
    out = bench.out / "rollouts" / f"own-{name}-{seed}.jsonl"
    tokens = form.story_tokens if stories else form.new_tokens
    n = max(1, form.stories // len(prompts)) if stories else 1
    done = rollout(str(file), out, model=model, seed=seed, n=n, max_new_tokens=tokens)
    return scan(str(done.path), folder, model=model, keep=["temperature", "top_p"])


MODELS = {"stories": "stories260K", "gsm8k": "SmolLM2"}


def calibration(bench: Bench) -> Iterator[Finding]:
    for name, title in MODELS.items():
        sets, fresh = own(bench, name, 1), own(bench, name, 2)
        for rate in RATES:
            if rate * int(sets.manifest["counts"]["trained_tokens"]) < 1:
                continue  # a single token would be more
            rule = calibrated(sets, sets.path, rate)
            a, b = (_flags(s, rule) for s in (sets, fresh))
            row = f"{title}, {int(b[:, 0].sum()):,} fresh tokens, rate {rate:.1%}"
            share = [s[:, 1].sum() / s[:, 0].sum() for s in (a, b)]
            drawn_shares = [(d[:, 1] / d[:, 0]) for d in (resampled(a, [1]), resampled(b, [2]))]
            yield Finding(0, row, "flagged", share[1], *interval(drawn_shares[1]), "%")
            off = drawn_shares[1] - drawn_shares[0]
            yield Finding(0, row, "fresh − own", share[1] - share[0], *interval(off), "%")


def _flags(of: Scan, rule: ConflictRule) -> np.ndarray:
    """(E, 2) tokens and flagged tokens of each example."""
    frame = of.tokens(["example", *rule.reads])
    frame["flag"] = np.asarray(rule({c: frame[c].to_numpy() for c in rule.reads}), float)
    return frame.groupby("example")["flag"].agg(["count", "sum"]).to_numpy(float)


# --- audit ---


def audit(bench: Bench) -> Iterator[Finding]:
    settings = {"statistics": [c for c in ("logprob_alone",) if c in STATISTICS]}
    of_numbers = numbers(bench, **settings)
    larger = replace(bench, form=replace(bench.form, audited=round(NAMED * bench.form.audited)))
    of_names = names(larger, **settings)
    aligned = _aligned(larger, of_names, settings).scan
    yield from _audited(bench, of_numbers, of_numbers.scan, own(bench, "gsm8k", 1))
    yield from _audited(bench, of_names, aligned, own(bench, "stories", 1))


def _aligned(bench: Bench, audited: Audited, settings: dict[str, Any]) -> Any:
    """A forecast of the audited stories; retained and held out are stories that are not audited."""
    rest = sampled(bench)[-2 * bench.form.retained :]
    halves = rest[: bench.form.retained], rest[bench.form.retained :]
    columns = {"changed": None}  # which `keep` wants in every data set
    files = [
        str(bench.rows(f"audit-{i}", [row | columns for row in rows]))
        for i, rows in enumerate(halves)
    ]
    return forecast(
        str(bench.out / "data" / "audit-stories.jsonl"),
        bench.out / "forecasts" / "audit",
        model=bench.stories,
        keep=["changed"],
        scan=str(audited.scan.path),
        retain_data=files[0],
        eval_data=files[1],
        objective=["sft"],
        **settings,
    )


def _audited(bench: Bench, audited: Audited, scored: Scan, samples: Scan) -> Iterator[Finding]:
    frame, rule = audited.tokens, calibrated(scored, samples.path, FLAGGED)
    frame["calibrated surprise"] = frame["surprise"] > np.float32(rule.surprise_above)
    parts = [g for _, g in frame.groupby("seed")]
    for flags in ("conflict", "calibrated surprise"):
        for score in (flags, "nll", "upd", "surprise"):
            row = f"{audited.name}: tokens by {score}, as many as {flags}"
            found = np.array([against(g, score, flags) for g in parts]).T
            for title, values in zip(("precision", "recall", "AUROC"), found, strict=True):
                yield over_seeds(0, row, title, values.tolist(), within=SHARE)
    scores = available_scores(scored)
    pieces = list(row_scores(scored, scores))
    changed = frame.groupby("example")["changed"].any()
    example = np.concatenate([p["example"] for p in pieces])
    seed = frame.groupby("example")["seed"].first().loc[example].to_numpy()
    positive = changed.loc[example].to_numpy(bool)
    for score in scores:
        values = np.concatenate([p[score.name] for p in pieces]) * (
            1 if score.largest_first else -1
        )
        areas = [auroc(values[seed == s], positive[seed == s]) for s in np.unique(seed)]
        yield over_seeds(0, f"{audited.name}: rows by {score.name}", "AUROC", areas, within=SHARE)


# --- cost ---


def cost(bench: Bench) -> Iterator[Finding]:
    rows = {"stories260K": (bench.stories, 4 * bench.form.prompts), "SmolLM2": (bench.model, 12)}
    for name, (model, count) in rows.items():
        row, data = f"{name}, {count} rows of GSM8K", drawn(gsm8k(bench.data), 2 * count)
        files = [str(bench.rows(f"cost-{name}-{i}", data[i::2])) for i in (0, 1)]
        rounds = 1 if name == "SmolLM2" else 8  # the small model: single ones vary by a third
        least = np.min([_seconds(model, *files) for _ in range(rounds)], 0)
        for title, seconds in zip(TIMED, least, strict=True):
            yield Finding(0, row, title, float(seconds), np.nan, np.nan)
        ratio = float(least[1] / least[0])
        yield Finding(0, row, "perturbed / scan", ratio, np.nan, np.nan)
        yield from _memory(row, model, files)


TIMED = ("scan, s", "two perturbed scans, s", "gradient, s", "four checks, s")


def _seconds(model: str, data: str, retained: str) -> list[float]:
    """CPU seconds of the parts of a forecast, loading apart where it can be told apart."""
    from eaft_probe.model.loading import load_model
    from eaft_probe.progress import Silent
    from eaft_probe.settings import ScanSettings
    from eaft_probe.verbs.forecast import alignment
    from eaft_probe.verbs.forecast.passes import read_rows
    from eaft_probe.verbs.scan.perturbation import movable

    settings, marks = ScanSettings(model=model), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        marks.append(time.process_time())
        base = scan(data, Path(folder) / "scan", model=model)
        marks.append(time.process_time())
        loaded = load_model(model)
        parameters = movable(loaded.whole, None)
        kept, own_rows = (read_rows(d, settings, loaded, 2_000) for d in (retained, data))
        before = time.process_time()
        place = base.path / "alignment"
        d = alignment.direction(place, "retain", loaded, parameters, kept, {})
        after = time.process_time()
        alignment.write_alignment(base, data, settings, None, [d], Silent())
        perturbed = time.process_time()
        for window in own_rows.windows[:4]:
            at = int(np.flatnonzero(window.trained)[-1])
            alignment._token_gradient(loaded, parameters, window.ids, at)
        checked = time.process_time()
    return [marks[1] - marks[0], perturbed - after, after - before, checked - perturbed]


def _memory(row: str, model: str, files: list[str]) -> Iterator[Finding]:
    peaks = {}
    for verb in ("scan", "forecast"):
        command = [sys.executable, __file__, "--peak", verb, model, *files]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks[verb], weights = json.loads(done.stdout.splitlines()[-1])
    for title, value in (
        ("peak of a scan, MB", peaks["scan"]),
        ("forecast − scan, MB", peaks["forecast"] - peaks["scan"]),
        ("weights, MB", weights),
    ):
        yield Finding(0, row, title, value / 1e6, np.nan, np.nan)


def _peak(verb: str, model: str, data: str, retained: str) -> tuple[int, int]:
    """Peak bytes of this process after one verb, and the bytes of the weights."""
    from eaft_probe.model.loading import load_model

    with tempfile.TemporaryDirectory() as folder:
        if verb == "scan":
            scan(data, Path(folder) / "scan", model=model)
        else:
            both = {"retain_data": retained, "eval_data": retained, "eval_tokens": 5_000}
            few = {"objective": ["sft"], "step_tokens": 2_000, "checks": 1}
            forecast(data, Path(folder) / "forecast", model=model, **both, **few)
    # ru_maxrss would be at least that of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    peak = int(status["VmHWM"].split()[0]) * 1024
    weights = sum(p.numel() * p.element_size() for p in load_model(model).whole.parameters())
    return peak, weights


# --- the command ---

Stage = Callable[[Bench], Iterator[Finding]]


def stages(quick: bool) -> dict[str, tuple[str, Stage]]:
    rows, larger = (QUICK_ROWS, QUICK_LARGER) if quick else (ROWS, LARGER)
    return {
        "tau": ("Exchange rates over sft's, and how well they agree", exchange_rates),
        "larger": (
            "Exchange rates under the larger model",
            lambda bench: larger_model(replace(bench, form=replace(bench.form, **larger))),
        ),
        "rows": ("Rows left out before training", lambda bench: rows_left_out(bench, **rows)),
        "audit": ("Where is an answer that was changed?", audit),
        "calibration": ("The flagged share of fresh samples", calibration),
        "cost": ("What a forecast costs", cost),
    }


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        print(json.dumps(_peak(*sys.argv[2:])))
        return
    args = _arguments()
    form = QUICK if args.quick else FULL
    bench = Bench(args.data, args.model, args.stories, args.out, form, args.workers)
    for name in args.stages:
        title, stage = stages(args.quick)[name]
        start = time.monotonic()
        try:
            found = list(stage(bench))
        except (ProbeError, OSError) as error:
            sys.exit(f"forecast: {one_line(error)}; what is done is in {args.out}")
        (args.out / f"{name}.json").write_text(json.dumps([asdict(f) for f in found], indent=1))
        print(f"## {title}\n\n{_tables(found)}\n\n{time.monotonic() - start:.0f} s\n", flush=True)


def _tables(found: list[Finding]) -> str:
    """One for each set of columns."""
    columns: dict[str, tuple[str, ...]] = {}
    for f in found:
        columns[f.row] = (*columns.get(f.row, ()), f.column)
    groups = dict.fromkeys(columns.values())
    return "\n\n".join(table([f for f in found if columns[f.row] == g], {}) for g in groups)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--stories", required=True, help="folder of the model stories260K")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, default=Path("forecasts"))
    parser.add_argument("--stages", nargs="+", choices=stages(True), default=[*stages(True)])
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at once")
    return parser.parse_args()


if __name__ == "__main__":
    main()
