"""Do conflicts find an answer that was tampered with? Claim 6, against three other rankings."""

import json
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas

import eaft_probe
from eaft_probe import Scan, scan
from evidence.bench import Bench, Row
from evidence.findings import SHARE, Finding, over_seeds
from evidence.sources import drawn, gsm8k
from evidence.stories import NAMES, sampled

NUMBER = re.compile(r"\d+")
NAME = re.compile(rf"\b({'|'.join(NAMES)})\b")
DEMO = Path(eaft_probe.__file__).parent / "data" / "demo.jsonl"


@dataclass(frozen=True)
class Audited:
    """Scored tokens, each with `seed`, `example`, `changed`, and the scores of `TOKENS`."""

    name: str
    scan: Scan
    tokens: pandas.DataFrame


TOKENS = ("conflict", "nll", "upd")
ROWS = ("conflicts", "perplexity", "upd")


def audit(bench: Bench) -> Iterator[Finding]:
    """Precision and recall of the flags, and of each ranking at as many flagged; AUROC of all."""
    for made in (numbers, names, _demo):
        audited = made(bench)
        yield from _findings(audited.name, "token", audited.tokens, TOKENS)
        yield from _findings(audited.name, "row", _by_row(audited.tokens), ROWS)


def _findings(
    name: str, what: str, frame: pandas.DataFrame, scores: tuple[str, ...]
) -> Iterator[Finding]:
    seeds = [g for _, g in frame.groupby("seed")]
    by_chance = [float(g["changed"].mean()) for g in seeds]
    for score in scores:
        row, measured = f"{name}, {what} by {score}", [against(g, score, scores[0]) for g in seeds]
        yield over_seeds(6, row, "changed", by_chance, "%", SHARE)
        for at, column in enumerate(("precision", "recall", "AUROC")):
            yield over_seeds(6, row, column, [m[at] for m in measured], within=SHARE)


def against(frame: pandas.DataFrame, score: str, flags: str) -> tuple[float, float, float]:
    """A score's precision and recall at as many as the rule flags, and its AUROC."""
    changed, count = frame["changed"].to_numpy(bool), int((frame[flags] > 0).sum())
    found = int(changed[np.argsort(-frame[score].to_numpy(float), kind="stable")[:count]].sum())
    if score == flags:
        found = int(changed[frame[flags].to_numpy() > 0].sum())
    precision = found / count if count else math.nan
    recall = found / changed.sum() if changed.any() else math.nan
    return precision, recall, auroc(frame[score].to_numpy(float), changed)


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a changed one scores above another; ties count half."""
    n, m = int(positive.sum()), int((~positive).sum())
    ranks = pandas.Series(score).rank().to_numpy()
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m)) if n and m else math.nan


def _by_row(tokens: pandas.DataFrame) -> pandas.DataFrame:
    """Conflicts are counted; the others averaged over the row, as perplexity and UPD are."""
    return tokens.groupby(["seed", "example"], as_index=False).agg(
        changed=("changed", "any"),
        conflicts=("conflict", "sum"),
        perplexity=("nll", "mean"),
        upd=("upd", "mean"),
    )


# --- what is audited ---


def numbers(bench: Bench, **settings: Any) -> Audited:
    """GSM8K with a number in every other answer drawn anew, of as many digits."""
    rows = drawn(gsm8k(bench.data), bench.form.seeds * bench.form.audited)
    for at, row in enumerate(rows):
        _tamper(row, row["messages"][-1], NUMBER, _other_number, at)
    return _audited("gsm8k", rows, bench, bench.model, **settings)


def names(bench: Bench, **settings: Any) -> Audited:
    """The story model's own stories with a name in every other one exchanged for another."""
    rows = [row for row in sampled(bench) if NAME.search(row["completion"])]
    rows = rows[: bench.form.seeds * bench.form.audited]
    for at, row in enumerate(rows):
        _tamper(row, row, NAME, _other_name, at)
    return _audited("stories", rows, bench, bench.stories, **settings)


def _demo(bench: Bench) -> Audited:
    """The bundled demo data, its parts in place of seeds. Its errors were placed with smollm2 at
    hand."""
    rows = [json.loads(line) for line in DEMO.read_text().splitlines()]
    rows = drawn(rows, len(rows))  # or the thirds would hold other kinds of rows
    for row in rows:
        answer, planted = row["messages"][-1]["content"], row["planted_text"]
        start = answer.rindex(planted)
        row["changed"] = [start, start + len(planted)] if planted else None
    return _audited("demo", rows, bench, bench.model)


def _tamper(
    row: Row, holder: Row, pattern: re.Pattern[str], other: Callable[..., str], at: int
) -> None:
    """Changes one place of every other row, and says which characters of the answer are new."""
    random_, field = random.Random(at), "content" if "content" in holder else "completion"
    row["changed"] = None
    places = list(pattern.finditer(holder[field]))
    if at % 2 or not places:
        return
    place = random_.choice(places)
    put = other(place[0], random_)
    same = next(i for i, (a, b) in enumerate(zip(place[0], put, strict=False)) if a != b)
    holder[field] = holder[field][: place.start()] + put + holder[field][place.end() :]
    row["changed"] = [place.start() + same, place.start() + len(put)]


def _other_number(number: str, random_: random.Random) -> str:
    while (put := "".join(random_.choice("123456789") for _ in number)) == number:
        pass
    return put


def _other_name(name: str, random_: random.Random) -> str:
    return random_.choice([n for n in NAMES if n != name])


def _audited(name: str, rows: list[Row], bench: Bench, model: str, **settings: Any) -> Audited:
    file = bench.rows(f"audit-{name}", rows)
    folder = bench.out / "scans" / f"audit-{name}"
    made = scan(str(file), folder, model=model, keep=["changed"], **settings)
    return Audited(name, made, _tokens(made, len(rows), bench.form.seeds))


def _tokens(made: Scan, rows: int, seeds: int) -> pandas.DataFrame:
    columns = ["example", "char_start", "char_end", "logprob", "entropy", "surprise", "conflict"]
    frame = made.tokens(columns)
    spans = {e.example: _span(e.text, e.messages, e.changed) for e in made.examples().itertuples()}
    start, end = np.array([spans[example] for example in frame["example"]]).T
    frame["changed"] = (frame["char_start"] < end) & (frame["char_end"] > start)
    frame["seed"] = frame["example"] * seeds // rows
    frame["nll"] = -frame["logprob"].astype(float)
    frame["upd"] = _upd(frame, made.manifest["model"]["vocab_size"])
    return frame


def _span(text: str, messages: str, kept: str | None) -> tuple[int, int]:
    """Where the change stands in the rendered conversation; an empty place without one."""
    if not isinstance(kept, str):
        return 0, 0
    start, end = json.loads(kept)
    answer = text.rindex(json.loads(messages)[-1]["content"].rstrip())
    return answer + start, answer + end


def _upd(frame: pandas.DataFrame, vocabulary: int) -> pandas.Series:
    """OpenDataArena's σ(loss) · max(0, 1 − H / ln V)."""
    certainty = (1 - frame["entropy"].astype(float) / math.log(vocabulary)).clip(lower=0)
    return certainty / (1 + np.exp(-frame["nll"]))
