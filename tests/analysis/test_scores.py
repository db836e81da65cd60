"""Row scores: float64 loops over the tokens of each row, and what every entry must hold."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scans_made

from eaft_probe.analysis.scores import (
    SCORES,
    Score,
    ScoredRows,
    available_scores,
    require_score,
    row_scores,
    worst_rows,
)
from eaft_probe.errors import MissingColumn, ScanError, UnknownName
from eaft_probe.scans.scan import Scan

VOCAB = 64
Tokens = Sequence[dict[str, float]]  # of one row


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def nll(tokens: Tokens) -> list[float]:
    return [-t["logprob"] for t in tokens]


def largest(tokens: Tokens, name: str) -> list[float]:
    return sorted((t[name] for t in tokens), reverse=True)


def upd(tokens: Tokens) -> float:
    """OpenDataArena: σ(loss) · max(0, 1 − H / ln V), mean over tokens."""
    sigmoid = [1 / (1 + math.exp(-loss)) for loss in nll(tokens)]
    sure = [max(0.0, 1 - t["entropy"] / math.log(VOCAB)) for t in tokens]
    return mean([s * c for s, c in zip(sigmoid, sure, strict=True)])


def ifd(tokens: Tokens) -> float:
    both = [t for t in tokens if not math.isnan(t["logprob_alone"])]
    if not both:
        return math.nan
    return math.exp(mean(nll(both))) / math.exp(mean([-t["logprob_alone"] for t in both]))


LOOPS: dict[str, Callable[[Tokens], float]] = {
    "conflict_share": lambda tokens: sum(bool(t["conflict"]) for t in tokens) / len(tokens),
    "mean_nll": lambda tokens: mean(nll(tokens)),
    "ppl": lambda tokens: math.exp(mean(nll(tokens))),
    "max_surprise": lambda tokens: largest(tokens, "surprise")[0],
    "top5_surprise": lambda tokens: mean(largest(tokens, "surprise")[:5]),
    "upd": upd,
    "hes": lambda tokens: sum(largest(tokens, "entropy")[: max(1, round(0.005 * len(tokens)))]),
    "norm_loss": lambda tokens: mean(nll(tokens)) / math.log(2),
    "ifd": ifd,
    "retain_alignment": lambda tokens: math.fsum(t["retain_alignment"] for t in tokens),
}


def columns(lengths: Sequence[int], reads: Sequence[str], seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    n = sum(lengths)
    example = np.repeat(np.arange(len(lengths)) * 2 + 1, lengths)  # not every row is scored
    made: dict[str, Any] = {name: random.normal(size=n).astype(np.float32) for name in reads}
    for name in {"logprob", "logprob_alone"} & made.keys():
        made[name] = -np.abs(made[name]) * 3
    if "entropy" in made:
        made["entropy"] = (np.abs(made["entropy"]) * 2).astype(np.float32)
    if "conflict" in made:
        made["conflict"] = made["conflict"] > 1
    if "logprob_alone" in made:  # the first token of a row is read behind nothing
        made["logprob_alone"][np.flatnonzero(np.diff(example, prepend=-1))] = np.nan
    return {"example": example, **made}


LENGTHS = (7, 1, 3, 400, 2, 1300)


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_a_score_is_that_of_a_float64_loop(score: Score) -> None:
    made = columns(LENGTHS, score.reads)
    scored = score.compute(ScoredRows.of(made, VOCAB))
    ends = np.cumsum(LENGTHS)
    for value, past, length in zip(scored, ends, LENGTHS, strict=True):
        tokens = [{n: float(made[n][i]) for n in score.reads} for i in range(past - length, past)]
        wanted = LOOPS[score.name](tokens)
        assert value == pytest.approx(wanted, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_a_row_s_score_depends_on_its_own_tokens_only(score: Score) -> None:
    made = columns((5, 9, 6), score.reads)
    alone = {name: column[5:14] for name, column in made.items()}
    whole = score.compute(ScoredRows.of(made, VOCAB))
    np.testing.assert_allclose(score.compute(ScoredRows.of(alone, VOCAB)), whole[1:2])
    assert score.meaning
    assert score.reads


# --- of a scan ---


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    tokens = scans_made.measured(scans_made.places(3000))
    return scans_made.write(tmp_path_factory.mktemp("scan") / "s", tokens, group=170)


def test_the_scores_of_a_scan_over_parts_and_row_groups(scan: Scan) -> None:
    scores = available_scores(scan)
    assert {"conflict_share", "mean_nll", "ppl", "upd", "hes", "norm_loss"} <= {
        s.name for s in scores
    }
    frame = scan.tokens()
    parts = list(row_scores(scan, scores))
    assert len(parts) == 3
    scored = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
    groups = frame.groupby("example")
    assert [*scored["example"]] == [*groups.groups]
    assert [*scored["trained_tokens"]] == [*groups.size()]
    for score in scores:
        loops = [LOOPS[score.name](g[[*score.reads]].to_dict("records")) for _, g in groups]
        np.testing.assert_allclose(scored[score.name], loops, rtol=1e-9, err_msg=score.name)


def test_the_worst_rows_come_first(scan: Scan) -> None:
    worst = worst_rows(scan, "mean_nll", 4)
    means = (-scan.tokens(["example", "logprob"]).groupby("example")["logprob"].mean()).to_dict()
    assert [row for row, _ in worst] == sorted(means, key=lambda row: -means[row])[:4]
    assert [value for _, value in worst] == pytest.approx([means[r] for r, _ in worst], rel=1e-5)


def test_turns_are_scored_as_one_row(tmp_path: Path) -> None:
    tokens = scans_made.measured(scans_made.places(600))
    together = scans_made.write(tmp_path / "together", tokens)
    each = scans_made.write(tmp_path / "each", scans_made.by_turn(tokens), turns="each")
    for name in ("mean_nll", "hes"):
        assert dict(worst_rows(each, name, 9)) == pytest.approx(dict(worst_rows(together, name, 9)))


def test_a_score_without_its_columns_says_what_makes_them(scan: Scan) -> None:
    with pytest.raises(MissingColumn, match=r"'retain_alignment'.*`eaft-probe forecast` makes it"):
        require_score(scan, "retain_alignment")
    with pytest.raises(MissingColumn, match=r"'ifd'.*; rescan with --statistics logprob_alone"):
        require_score(scan, "ifd")
    with pytest.raises(UnknownName, match="did you mean 'mean_nll'"):
        require_score(scan, "mean_nl")


def test_a_scan_that_kept_a_part_of_its_tokens_has_no_scores(scan: Scan, tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="a row score reads every token"):
        worst_rows(scans_made.keeping(scan, tmp_path / "k"), "hes", 1)
