"""Where the gradient comes from under SFT and under EAFT, closed-form and exact: claim 3."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas

from eaft_probe import Scan
from eaft_probe.analysis.rank_correlation import EXACT, WEIGHT
from eaft_probe.errors import ScanError
from eaft_probe.objectives.gates import objective
from eaft_probe.verbs.gradients.gradients import gradients
from evidence.answers import answers, supervised
from evidence.bench import Bench
from evidence.findings import SHARE, Finding, over_seeds

DATA = "gsm8k"
EAFT = objective("eaft", {})
CLOSED = "grad_logits"
# arXiv 2601.02151, Fig. 3: the corner is dark under SFT and light under EAFT, without figures.
PAPER_GRADIENTS = {"sft": "strong", "eaft": "suppressed"}


def gradient_shares(bench: Bench) -> Iterator[Finding]:
    """The conflicts' share of the tokens and of the summed norms. EAFT's gate is a factor of a
    token's gradient, whichever parameters it is taken in."""
    scan = supervised(bench, DATA)
    form = bench.form
    asked = {"tokens": form.exact, "model": bench.model, "rows": form.seeds * form.prompts}
    made = [
        bench.kept(f"exact-gradients-{seed}", asked, partial(_sample, scan, seed, form.exact))
        for seed in range(form.seeds)
    ]
    columns = ["conflict", CLOSED, *EAFT.reads]
    whole = [frame for _, frame in answers(scan, bench, columns).groupby("seed")]
    samples = [pandas.DataFrame(sample) for sample in made]
    for frame in whole:
        frame[WEIGHT] = 1.0
    tokens = [float(f["conflict"].mean()) for f in whole]
    for name in PAPER_GRADIENTS:
        yield over_seeds(3, name, "of the tokens", tokens, "%", SHARE)
        for said, norm, frames in (("closed form", CLOSED, whole), ("exact", EXACT, samples)):
            shares = [_share(f, norm, name == "eaft") for f in frames]
            yield over_seeds(3, name, f"of the gradient, {said}", shares, "%", SHARE)


def _sample(scan: Scan, seed: int, tokens: int) -> dict[str, list[Any]]:
    """A draw over all rows. The last seed's norms stay with the scan."""
    try:
        taken = gradients(scan.path, sample=tokens, seed=seed)  # goes on with its own
    except ScanError:
        taken = gradients(scan.path, sample=tokens, seed=seed, overwrite=True)  # another seed's
    gated = scan.tokens(["example", "position", "conflict", *EAFT.reads])
    table = taken.table[["example", "position", EXACT, WEIGHT]]
    return table.merge(gated, on=["example", "position"]).to_dict("list")


def _share(frame: pandas.DataFrame, norm: str, gated: bool) -> float:
    mass = frame[norm].to_numpy(np.float64) * frame[WEIGHT].to_numpy(np.float64)
    if gated:
        mass = mass * EAFT({name: frame[name].to_numpy() for name in EAFT.reads})
    return float(mass[frame["conflict"].to_numpy(bool)].sum() / mass.sum())
