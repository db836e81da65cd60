"""The conflict rule says the same in NumPy, torch and DuckDB."""

import math
from itertools import product
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from eaft_probe.columns.conflicts import ENTROPY_BELOW, PROB_BELOW, ConflictRule
from eaft_probe.errors import BadInput

RULES = [
    ConflictRule(),
    ConflictRule(0.1, 0.3),
    ConflictRule(1 / 3, 1e-7),
    ConflictRule(float(np.float32(0.1)), float(np.float32(0.2))),
    ConflictRule(0.0, 1.0),
    ConflictRule(1e-40, 1e-40),
    ConflictRule(-1.0, 2.0),
    ConflictRule(surprise_above=2.5),
    ConflictRule(surprise_above=0.1, rate=0.01),
]


def _columns(rule: ConflictRule) -> dict[str, NDArray[np.float32]]:
    """Random values, and the thresholds themselves with their neighbours in float32."""
    random = np.random.default_rng(0)
    entropy = random.exponential(0.5, 500)
    prob = random.beta(0.2, 0.5, 500)
    surprise = random.normal(size=500)
    edges = []
    for threshold in (rule.entropy_below, rule.prob_below, rule.surprise_above or 0.0):
        at = np.float32(threshold)
        edges.append([np.nextafter(at, np.float32(-9)), at, np.nextafter(at, np.float32(9))])
    grid = np.array([*product(*edges)])
    return {
        "entropy": np.concatenate([entropy, grid[:, 0]]).astype(np.float32),
        "prob": np.concatenate([prob, grid[:, 1]]).astype(np.float32),
        "surprise": np.concatenate([surprise, grid[:, 2]]).astype(np.float32),
    }


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_numpy_torch_and_duckdb_agree(rule: ConflictRule) -> None:
    columns = _columns(rule)
    limits = np.float32(rule.entropy_below), np.float32(rule.prob_below)
    rows = zip(columns["entropy"], columns["prob"], strict=True)
    wanted = [bool(e < limits[0] and p < limits[1]) for e, p in rows]
    if rule.surprise_above is not None:
        wanted = [bool(s > np.float32(rule.surprise_above)) for s in columns["surprise"]]
    table = pa.table(columns)
    connection = duckdb.connect()
    connection.register("tokens", table)
    by_sql = connection.sql(f"SELECT {rule.sql} FROM tokens").fetchall()
    assert rule(columns).tolist() == wanted
    assert rule({k: torch.from_numpy(v) for k, v in columns.items()}).tolist() == wanted
    assert [flag for (flag,) in by_sql] == wanted


def test_the_default_rule_is_the_papers_centre_and_a_fifth() -> None:
    assert pytest.approx(0.509, abs=5e-4) == ENTROPY_BELOW
    assert PROB_BELOW == 0.2
    assert ConflictRule() == ConflictRule(ENTROPY_BELOW, PROB_BELOW, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_thresholds_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(BadInput, match="finite"):
        ConflictRule(entropy_below=bad)
    with pytest.raises(BadInput, match="finite"):
        ConflictRule(prob_below=bad)
    with pytest.raises(BadInput, match="finite"):
        ConflictRule(surprise_above=bad)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 15.0, math.nan])
def test_quantiles_outside_0_to_1_are_refused(bad: float) -> None:
    with pytest.raises(BadInput, match="--quantile"):
        ConflictRule(quantile=bad)


def test_a_rule_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    for rule in (ConflictRule(1 / 3, 0.1, 0.15), ConflictRule(surprise_above=1 / 3, rate=0.05)):
        rule.save(tmp_path)
        assert ConflictRule.load(tmp_path) == rule
    assert [p.name for p in tmp_path.iterdir()] == ["rule.json"]


def test_a_folder_without_a_rule_has_the_default(tmp_path: Path) -> None:
    assert ConflictRule.load(tmp_path) == ConflictRule()


def test_a_rule_names_its_origin() -> None:
    assert str(ConflictRule(0.5, 0.2)) == "entropy < 0.5 nats and prob < 0.2"
    assert str(ConflictRule(surprise_above=2.5)) == "surprise > 2.5"
    assert "0.05 of the model's own tokens" in str(ConflictRule(surprise_above=2.5, rate=0.05))
    assert "lowest 0.15 of both" in str(ConflictRule(0.5, 0.2, 0.15))
