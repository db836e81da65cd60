"""A conflict rule whose threshold is set by what the model says itself.

A surprise of 3 is not rare in the way that a normal deviate of 3 is: on the model's own samples,
where nothing is wrong, the share above a threshold is known, and with it what a share of conflicts
means.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.quantiles import order_statistic
from eaft_probe.errors import BadInput
from eaft_probe.quantities import percent
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import RuleSettings

SAMPLING = {"temperature": 1.0, "top_p": 1.0}  # what the model's own distribution is drawn by


def rule_of(scan: Scan, settings: RuleSettings) -> ConflictRule:
    """The rule that settings ask for. Raises `BadInput`."""
    if settings.calibrate is not None and settings.rate is not None:
        return calibrated(scan, settings.calibrate, settings.rate, settings.entropy_below)
    pair = settings.entropy_below, settings.prob_below
    return ConflictRule.of(*pair, settings.quantile, settings.surprise_above)


def calibrated(
    scan: Scan, own: str | Path, rate: float, entropy_below: float | None = None
) -> ConflictRule:
    """The rule that flags at most the share `rate` of the tokens of `own`, a scan of rollouts.

    By surprise; or, with `entropy_below`, the pair with the largest `prob_below` that keeps to it.
    Raises `BadInput` where `own` is no scan of the model's own samples, or cannot tell such a rate.
    """
    rollouts = Scan.open(own)
    rollouts.require_all("--calibrate")
    _require_own(scan, rollouts)
    if not 0 < rate < 1:
        raise BadInput(f"--rate is a number between 0 and 1, found {rate:g}")
    tokens = int(rollouts.manifest["counts"]["trained_tokens"])
    most = int(rate * tokens)
    if not most:
        raise BadInput(
            f"{own} has {tokens:,} tokens, too few for --rate {rate:g}; sample at least "
            f"{int(np.ceil(1 / rate)):,}"
        )
    if entropy_below is None:
        surprise = order_statistic(lambda: _values(rollouts, "surprise"), tokens - 1 - most)
        return ConflictRule(surprise_above=surprise, rate=rate)
    prob = _largest_prob(rollouts, entropy_below, most, tokens, rate)
    return ConflictRule(entropy_below, prob, rate=rate)


def _largest_prob(own: Scan, entropy_below: float, most: int, tokens: int, rate: float) -> float:
    limit = np.float32(entropy_below)

    def sure() -> Iterator[NDArray[np.float32]]:
        for columns in own.token_arrays(["entropy", "prob"]):
            yield columns["prob"][columns["entropy"] < limit]

    below = sum(map(len, sure()))
    if below <= most:
        raise BadInput(
            f"only {percent(below / tokens)} of the tokens of {own.path} have entropy below "
            f"{entropy_below:.3g}, so no probability reaches --rate {rate:g}; lower the rate or "
            f"raise --entropy-below"
        )
    return order_statistic(sure, most)


def _values(scan: Scan, name: str) -> Iterator[NDArray[np.float32]]:
    return (columns[name] for columns in scan.token_arrays([name]))


def _require_own(scan: Scan, own: Scan) -> None:
    """Raises `BadInput` for answers of another model, or drawn otherwise than it would."""
    identity = ("identity", "adapter_identity")
    if any(scan.manifest["model"][n] != own.manifest["model"][n] for n in identity):
        raise BadInput(
            f"--calibrate {own.path} was made under {own.manifest['model']['name']}, {scan.path} "
            f"under {scan.manifest['model']['name']}; give rollouts of the same model"
        )
    missing = [n for n in SAMPLING if n not in own.manifest["config"]["keep"]]
    if missing:
        raise BadInput(
            f"{own.path} does not say how its answers were drawn; scan a rollout with --keep "
            f"temperature,top_p, or use `rollout --then-scan`"
        )
    for name, wanted in SAMPLING.items():
        found = own.rows(
            f"SELECT DISTINCT {name} FROM examples "
            f"WHERE TRY_CAST({name} AS DOUBLE) IS DISTINCT FROM ?",
            [wanted],
        )
        if found:
            raise BadInput(
                f"{own.path} has answers drawn with {name} {found[0][0]}; calibration needs the "
                f"model's own distribution: temperature 1 and top_p 1"
            )
