"""A threshold set by the model's own rollouts, against a sort of their tokens."""

from pathlib import Path

import numpy as np
import pytest
import scans_made

from eaft_probe import Scan
from eaft_probe.analysis.calibration import calibrated, rule_of
from eaft_probe.errors import BadInput
from eaft_probe.settings import RuleSettings

DRAWN = {"temperature": "1.0", "top_p": "1.0"}


def rollouts(folder: Path, tokens: int = 700, **drawn: str) -> Scan:
    """A scan of answers that says how they were drawn."""
    placed = scans_made.measured(scans_made.places(tokens, seed=4), 5)
    return scans_made.keeping_columns(scans_made.write(folder, placed), DRAWN | drawn)


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    return scans_made.write(tmp_path / "data", scans_made.measured(scans_made.places(500)))


@pytest.mark.parametrize("rate", [0.3, 0.05, 0.01, 1 / 699])
def test_at_most_the_rate_is_flagged_and_one_token_more_would_not_fit(
    rate: float, scan: Scan, tmp_path: Path
) -> None:
    own = rollouts(tmp_path / "own")
    rule = calibrated(scan, own.path, rate)
    surprise = own.tokens(["surprise"])["surprise"].to_numpy()
    flagged = int((surprise > np.float32(rule.surprise_above)).sum())
    assert flagged <= rate * len(surprise) < flagged + 1
    assert (
        scan.flag(rule).tokens(["conflict"])["conflict"].sum()
        == (scan.tokens(["surprise"])["surprise"] > np.float32(rule.surprise_above)).sum()
    )


@pytest.mark.parametrize("rate", [0.02, 0.004])
def test_the_pair_keeps_its_entropy_and_gets_the_largest_probability(
    rate: float, scan: Scan, tmp_path: Path
) -> None:
    own = rollouts(tmp_path / "own")
    rule = rule_of(scan, RuleSettings(calibrate=str(own.path), rate=rate, entropy_below=1.5))
    tokens = own.tokens(["entropy", "prob"])
    sure = np.sort(tokens["prob"][tokens["entropy"] < 1.5].to_numpy())
    flagged = int((sure < np.float32(rule.prob_below)).sum())
    assert rule.entropy_below == 1.5
    assert flagged <= rate * len(tokens) < flagged + 1
    assert sure[flagged] == np.float32(rule.prob_below)


def test_a_rate_that_cannot_be_reached_is_refused(scan: Scan, tmp_path: Path) -> None:
    own = rollouts(tmp_path / "own")
    with pytest.raises(
        BadInput, match=r"700 tokens, too few for --rate 0\.001; sample at least 1,0"
    ):
        calibrated(scan, own.path, 0.001)
    with pytest.raises(BadInput, match=r"have entropy below 0\.1, so no probability reaches"):
        calibrated(scan, own.path, 0.9, 0.1)


def test_a_temperature_of_1_may_be_spelled_as_any_number(scan: Scan, tmp_path: Path) -> None:
    whole = rollouts(tmp_path / "whole", temperature="1", top_p="1e0")
    assert calibrated(scan, whole.path, 0.1).rate == 0.1


@pytest.mark.parametrize("drawn", [{"temperature": "0.7"}, {"top_p": "0.9"}, {"top_p": "x"}])
def test_answers_drawn_otherwise_are_refused(
    drawn: dict[str, str], scan: Scan, tmp_path: Path
) -> None:
    own = rollouts(tmp_path / "own", **drawn)
    with pytest.raises(BadInput, match="temperature 1 and top_p 1"):
        calibrated(scan, own.path, 0.1)


def test_a_scan_of_something_else_is_refused(scan: Scan, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not say how its answers were drawn"):
        calibrated(scan, scan.path, 0.1)
    placed = scans_made.measured(scans_made.places(50))
    other = scans_made.write(tmp_path / "other", placed, model="another")
    with pytest.raises(BadInput, match="made under another"):
        calibrated(scan, other.path, 0.1)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"calibrate": "own"}, "belong together"),
        ({"rate": 0.1}, "belong together"),
        ({"surprise_above": 3.0, "prob_below": 0.1}, "a rule of its own"),
        ({"calibrate": "own", "rate": 0.1, "quantile": 0.1}, "sets the threshold"),
    ],
)
def test_settings_that_contradict_each_other(given: dict[str, object], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        RuleSettings(**given)  # type: ignore[arg-type]
