"""What a finished forecast says of any objective without the model: sums over the alignment.

A plain gradient step of size η on Σ g_t nll_t / N changes a mean nll whose gradient the tokens are
aligned with by −η / N · Σ g_t a_t: a gate, a mask or a dropped row is a factor of each token.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas
from numpy.typing import NDArray

from eaft_probe.analysis.bootstrap import interval, resampled, sums_of_pieces
from eaft_probe.analysis.stratified_sample import hash_bits
from eaft_probe.errors import BadInput
from eaft_probe.objectives.gates import OBJECTIVES, chosen_objectives
from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.scan_columns import open_base, resolved, token_columns
from eaft_probe.scans.alignment import ALIGNMENT, ALIGNMENT_COLUMNS, finished_forecast, unfinished
from eaft_probe.scans.keys import Arrays
from eaft_probe.scans.scan import Scan

TENTH = 10  # one in so many rows is held out where there is no --eval-data
RATIO = ("ratio", "ratio_low", "ratio_high")
NO_EFFECT = "no effect: its gates are 0 on all tokens"
REFERENCE = "reference"  # the scan under --reference, within ALIGNMENT


def held_out(rows: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Which rows are the seeded tenth that a step leaves out."""
    return np.asarray(hash_bits(seed, rows) % np.uint64(TENTH) == 0)


def reference_scan(scan: Scan) -> Scan | None:
    """The scan under the reference, where the forecast had one."""
    folder = scan.path / ALIGNMENT / REFERENCE
    return open_base(folder, "rho") if folder.exists() else None


def first_order(
    folder: str | Path,
    objectives: Sequence[str] = (),
    set: Mapping[str, object] | None = None,
) -> pandas.DataFrame:
    """A row for each objective, by default every one: `retain_change` and `eval_change`, the change
    of the two mean nll for a plain gradient step of size 1, and their `ratio`, each with its 95 %
    interval over examples (`_low`, `_high`); and a `note`, where it has no effect. `set`: fields of
    the objectives.

    Raises `BadInput` where `folder` is no finished forecast.
    """
    scan = Scan.open(folder)
    made = finished_forecast(scan.path)
    if made is None:
        raise unfinished(folder)
    names = objectives or [n for n in OBJECTIVES if n != "rho" or reference_scan(scan)]
    return pandas.DataFrame([_row(scan, o, made) for o in chosen_objectives(names, set)])


def by_objective(table: pandas.DataFrame) -> dict[str, dict[str, object]]:
    """A table's rows as JSON, under the objectives' names."""
    rows = json.loads(table.to_json(orient="records", double_precision=15))
    return {r["objective"]: {k: v for k, v in r.items() if k != "objective"} for r in rows}


def _row(scan: Scan, objective: Objective, made: dict[str, object]) -> dict[str, object]:
    compares = "reference_logprob" in objective.reads
    base = reference_scan(scan) if compares else None  # of the others the scan is its own base
    if compares and base is None:
        raise BadInput(
            f"objective {objective.name!r} compares with a reference model, and {scan.path} was "
            f"made without --reference; make it anew with one"
        )
    frozen = resolved(objective, scan, base)
    reads = [*dict.fromkeys([*frozen.reads, *ALIGNMENT_COLUMNS, "example"])]

    def values(columns: Arrays) -> NDArray[np.float64]:
        gate = np.asarray(frozen(columns), np.float64)
        counted = np.ones(len(gate))
        if made["held_out"]:
            counted[held_out(columns["example"], int(str(made["seed"])))] = 0
        return np.stack([counted, *(-counted * gate * columns[n] for n in ALIGNMENT_COLUMNS)])

    sums = sums_of_pieces(token_columns(scan, reads, base), values, scan.place)[0]
    draws = resampled(sums, [int(str(made["seed"]))])
    row: dict[str, object] = {"objective": str(frozen)}
    for figure, of in (("retain_change", 1), ("eval_change", 2)):
        row[figure] = float(sums[:, of].sum() / sums[:, 0].sum())
        row[f"{figure}_low"], row[f"{figure}_high"] = interval(draws[:, of] / draws[:, 0])
    total = sums.sum(0)
    if not sums[:, 1:].any():
        return row | dict.fromkeys(RATIO) | {"note": NO_EFFECT}
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (total[1] / total[2], *interval(draws[:, 1] / draws[:, 2]))
    return row | dict(zip(RATIO, ratio, strict=True)) | {"note": ""}
