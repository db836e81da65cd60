"""A row's tokens → one number: the SCORES by which rows are ranked and chosen.

A row is scored over all of its trained tokens, under --turns each over those of all its turns.
Notation: ℓ = −ln p is a token's nll, H its entropy, V the size of the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray

from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.errors import MissingColumn
from eaft_probe.registry import Registry
from eaft_probe.scans.scan import Scan

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredRows:
    """The N tokens of E rows, one row after the other."""

    columns: dict[str, NDArray[Any]]  # (N,), `example` among them
    first: NDArray[np.int64]  # (E,) index of the row's first token
    vocab_size: int

    @classmethod
    def of(cls, columns: dict[str, NDArray[Any]], vocab_size: int) -> "ScoredRows":
        starts = np.flatnonzero(np.diff(columns["example"], prepend=-1))
        return cls(columns, starts, vocab_size)

    def __getitem__(self, name: str) -> Floats:
        return self.columns[name].astype(np.float64)

    @property
    def nll(self) -> Floats:
        """(N,) nats."""
        return -self["logprob"]

    @property
    def counts(self) -> NDArray[np.int64]:
        """(E,) tokens of each row."""
        return np.diff(self.first, append=len(self.columns["example"]))

    def total(self, values: Floats) -> Floats:
        """(N,) → (E,) sums over the tokens of each row."""
        return np.add.reduceat(values, self.first)

    def mean(self, values: Floats) -> Floats:
        """(N,) → (E,) means over the tokens of each row."""
        return self.total(values) / self.counts

    def of_largest(self, values: Floats, most: NDArray[np.int64]) -> Floats:
        """(N,) → (E,) sums of the `most` (E,) largest values of each row."""
        row = np.repeat(np.arange(len(self.first)), self.counts)
        falling = values[np.lexsort((-values, row))]
        place = np.arange(len(values)) - self.first[row]
        return self.total(np.where(place < most[row], falling, 0.0))


@dataclass(frozen=True, slots=True)
class Score:
    """A number for each row, and which end of the ranking is the worse one."""

    name: str
    unit: str
    meaning: str
    reads: tuple[str, ...]  # token columns
    compute: Callable[[ScoredRows], Floats]
    source: str = "scan"  # the command that makes the columns
    largest_first: bool = True  # the worst rows have the largest values


def _top5_surprise(rows: ScoredRows) -> Floats:
    most = np.minimum(rows.counts, 5)
    return rows.of_largest(rows["surprise"], most) / most


def _upd(rows: ScoredRows) -> Floats:
    certainty = np.maximum(0, 1 - rows["entropy"] / np.log(rows.vocab_size))
    return rows.mean(certainty / (1 + np.exp(-rows.nll)))


def _hes(rows: ScoredRows) -> Floats:
    most = np.maximum(1, np.rint(0.005 * rows.counts)).astype(np.int64)
    return rows.of_largest(rows["entropy"], most)


def _ifd(rows: ScoredRows) -> Floats:
    """NaN for a row of which no token was read alone."""
    alone = rows["logprob_alone"]
    both = np.isfinite(alone)
    gain = rows.total(np.where(both, alone + rows.nll, 0.0))
    with np.errstate(invalid="ignore"):
        return np.exp(gain / rows.total(both.astype(np.float64)))


# First the one that told changed rows best, by an AUROC of 0.61; top5_surprise 0.59, mean_nll 0.58.
SCORES = Registry[Score]("score")
for _score in (
    Score("upd", "", "mean σ(ℓ) · max(0, 1 − H / ln V)", ("logprob", "entropy"), _upd),
    Score(
        "conflict_share",
        "",
        "share of tokens that are conflicts",
        ("conflict",),
        lambda rows: rows.mean(rows["conflict"]),
    ),
    Score("mean_nll", "nats", "mean ℓ", ("logprob",), lambda rows: rows.mean(rows.nll)),
    Score(
        "ppl",
        "",
        "perplexity, e^(mean ℓ)",
        ("logprob",),
        lambda rows: np.exp(rows.mean(rows.nll)),
    ),
    Score(
        "max_surprise",
        "",
        "largest surprise",
        ("surprise",),
        lambda rows: np.maximum.reduceat(rows["surprise"], rows.first),
    ),
    Score("top5_surprise", "", "mean of the 5 largest surprises", ("surprise",), _top5_surprise),
    Score(
        "hes",
        "nats",
        "sum of the largest entropies, of 0.5 % of the tokens but at least one",
        ("entropy",),
        _hes,
    ),
    Score(
        "norm_loss",
        "bits",
        "mean ℓ / ln 2",
        ("logprob",),
        lambda rows: rows.mean(rows.nll) / np.log(2),
    ),
    Score(
        "ifd",
        "",
        "perplexity of the answer behind its prompt / alone",
        ("logprob", "logprob_alone"),
        _ifd,
    ),
    Score(
        "retain_alignment",
        "",
        "sum of retain_alignment: negative where training on the row harms the retained data",
        ("retain_alignment",),
        lambda rows: rows.total(rows["retain_alignment"]),
        source="forecast",
        largest_first=False,
    ),
):
    SCORES.add(_score.name, _score)


def available_scores(scan: Scan) -> list[Score]:
    """Those whose columns the scan has."""
    return [s for s in SCORES.values() if not _missing(scan, s)]


def require_score(scan: Scan, name: str) -> Score:
    """Raises `UnknownName`, and `MissingColumn` where the scan lacks a column of the score."""
    score = SCORES[name]
    if missing := _missing(scan, score):
        how = f"rescan with --statistics {missing}"
        if missing not in STATISTICS:
            how = f"`eaft-probe {score.source}` makes it"
        raise MissingColumn(
            f"score {name!r} reads column {missing!r}, which {scan.place} does not have; {how}"
        )
    return score


def _missing(scan: Scan, score: Score) -> str | None:
    return next((c for c in score.reads if c not in (*scan.columns, "conflict")), None)


def row_scores(scan: Scan, scores: Sequence[Score]) -> Iterator[dict[str, NDArray[Any]]]:
    """`example`, `trained_tokens` and each of the scores, (E,) of one part after the other.

    Memory is that of one part. Raises `ScanError` where the scan has not kept all of its tokens.
    """
    scan.require_all("a row score")
    names = ["example", *sorted({c for score in scores for c in score.reads} - {"example"})]
    vocab_size = int(scan.manifest["model"]["vocab_size"])
    for part in range(len(scan.manifest["parts"])):
        pieces = [p for p in scan.token_arrays(names, part) if len(p["example"])]
        if pieces:
            columns = {n: np.concatenate([p[n] for p in pieces]) for n in names}
            rows = ScoredRows.of(columns, vocab_size)
            values = {score.name: score.compute(rows) for score in scores}
            example = columns["example"][rows.first]
            yield {"example": example, "trained_tokens": rows.counts, **values}


def worst_rows(scan: Scan, name: str, most: int) -> list[tuple[int, float]]:
    """(example, score) of the worst rows, the worst first; among equals in the order of the data.

    Raises as `require_score` and `row_scores` do.
    """
    worst = worst_of_each(scan, [require_score(scan, name)], most)
    return [*zip(worst["example"].tolist(), worst[name].tolist(), strict=True)]


def worst_of_each(scan: Scan, scores: Sequence[Score], most: int) -> pandas.DataFrame:
    """The rows that are among the `most` worst under some of the scores: `example`, the scores,
    and `place`, the first that a row has in one of their rankings, by which they are sorted.

    One pass, in memory that grows with `most` alone. Raises as `row_scores` does.
    """
    names, sign = [s.name for s in scores], [-1 if s.largest_first else 1 for s in scores]
    worst = pandas.DataFrame(columns=["example", *names, "place"])
    for rows in row_scores(scan, scores):
        new = pandas.DataFrame(rows)
        known = new if worst.empty else pandas.concat([worst, new], ignore_index=True)
        values = known[names].where(np.isfinite(known[names]))
        known["place"] = (values * sign).rank(method="first").min(axis=1)
        worst = known[known["place"] <= most]
    return worst.sort_values(["place", "example"])
