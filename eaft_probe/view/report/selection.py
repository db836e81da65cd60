"""What of a scan a page shows in full: tokens in context, pairs and examples, within a byte budget.

The choice is the same on every run: ties and draws are settled by a hash of a token's place.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from eaft_probe.analysis.aggregates import CELL, counted
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.errors import ScanError
from eaft_probe.scans.keys import named_place
from eaft_probe.scans.scan import Scan
from eaft_probe.view.report.page import encode

# 8 MB in all: the page takes 0.95, a landscape with millions of tokens and of conflicts in every
# cell 2.9, all the rest under 0.4.
TOKENS_BYTES, EXAMPLES_BYTES = 1_200_000, 2_500_000
EXAMPLE_BYTES = 400_000  # one example's share: a longer one is shown in part
MOST_CONFLICTS, MOST_OTHERS = 1_500, 2_500  # tokens that can be listed from the landscape
MOST_EXAMPLES, MOST_EXAMPLE_TOKENS, MOST_PAIRS = 300, 2_000, 40
PAIR = ("token", "top1", "conflicts", "prob", "top1_prob")
CONTEXT, GAP, LONGEST = 60, 1_000, 300  # characters: around a token, between tokens, of a name
# A token of the views `tokens` and `examples` in its text: before, itself, after.
IN_CONTEXT = (
    f"substr(text, greatest(char_start - {CONTEXT}, 0) + 1, least(char_start, {CONTEXT})), "
    f"token, substr(text, char_end + 1, {CONTEXT})"
)


def listed(scan: Scan, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens in context, conflicts first: evenly over the landscape and the same on every run."""
    sample = [
        row
        for conflict, most in ((True, MOST_CONFLICTS), (False, MOST_OTHERS))
        for row in _sample(scan, conflict, most)
    ]
    kept = list(within(sample, TOKENS_BYTES))
    if not kept:
        raise ScanError(f"{scan.path} is damaged: its tokens are of no example")
    conflicts = sum(row["conflict"] for row in kept)
    return {
        "names": list(kept[0]),
        "rows": [list(row.values()) for row in kept],
        "conflicts": conflicts,
        "of_conflicts": summary["conflicts"],
        "of": summary["trained_tokens"],
    }


def _sample(scan: Scan, conflict: bool, most: int) -> list[dict[str, Any]]:
    """Round after round one token from each cell of 1/32 by 1/2 nat, by a hash of its place."""
    key, place = (", ".join(k) for k in (scan.example_key, scan.token_key))
    names = [
        "before",
        "token",
        "after",
        "prob",
        "entropy",
        "rank",
        "top1",
        "top1_prob",
        "conflict",
        *scan.token_key,
        "cell",
    ]
    query = f"""
        WITH cells AS (
            SELECT min_by({_struct(scan.token_key)}, hash({place}), 500) AS chosen
            FROM tokens WHERE conflict = {conflict} GROUP BY floor(prob * 32), floor(entropy * 2)
        ), rounds AS (SELECT unnest(chosen, recursive := true), unnest(range(len(chosen))) AS round
            FROM cells
        ), sample AS (SELECT *, hash({place}) AS mixed FROM rounds
            ORDER BY round, mixed LIMIT {most})
        SELECT {IN_CONTEXT}, prob, entropy, {or_null(scan, "rank")}, {or_null(scan, "top1")},
               {or_null(scan, "top1_prob")}, conflict, {place}, {CELL}
        FROM sample JOIN tokens USING ({place})
             JOIN (SELECT {key}, text FROM examples) USING ({key})
        ORDER BY round, mixed"""
    return named(names, rows(scan, query))


# --- pairs and examples ---


def pairs(scan: Scan) -> dict[str, Any]:
    """The commonest (label, model's choice) among the conflicts, each with three places."""
    whole = counted(scan)
    listed = [dict(zip(PAIR, map(rounded, row), strict=True)) for row in whole.pairs(MOST_PAIRS)]
    place = _struct(("before", "after", *scan.token_key))
    query = f"""
        WITH wanted AS (SELECT unnest(?) AS token, unnest(?) AS top1)
        SELECT token, top1, min_by({place}, hash({", ".join(scan.token_key)}), 3)
        FROM conflicts JOIN wanted USING (token, top1) GROUP BY token, top1"""
    among = [[row[name] for row in listed] for name in ("token", "top1")]
    places = {(a, b): found for a, b, found in scan.rows(query, among)}
    for row in listed:
        row["places"] = places.get((row["token"], row["top1"]), [])
    return {"rows": listed, "of": whole.pair_kinds()}


def _struct(names: Iterable[str]) -> str:
    """The columns as one value of DuckDB."""
    return "{" + ", ".join(f"'{name}': {name}" for name in names) + "}"


Key = tuple[int, ...]  # what tells an example from others


def examples(scan: Scan) -> dict[str, Any]:
    """Whole examples, the largest share of conflicts first, while the bytes last."""
    shown = list(within(_filled(scan, _chosen(scan)), EXAMPLES_BYTES))
    noun = "turns" if scan.by_turn else "examples"
    kept = counted(scan).kept_columns()
    return {"rows": shown, "of": scan.renderings, "noun": noun, "kept": kept}


def _chosen(scan: Scan) -> dict[Key, dict[str, Any]]:
    """Example → what is known of it without its text, in the order of the page."""
    kept = "".join(f', "{_quoted(name)}"' for name in counted(scan).kept_columns())
    held, tokens, place = "trained_tokens", "", ", ".join(scan.example_key)
    if not scan.keeps_all:  # how many of them are there
        held = "there"
        tokens = (
            f"JOIN (SELECT {place}, count(*) AS there FROM tokens GROUP BY {place}) USING ({place})"
        )
    query = f"""
        SELECT {place}, key[:{LONGEST}], trained_tokens, {held} AS held, mean_nll,
               coalesce(n, 0) AS conflicts{kept}
        FROM examples LEFT JOIN (SELECT {place}, count(*) AS n FROM conflicts GROUP BY {place})
             USING ({place}) {tokens}
        WHERE trained_tokens > 0
        ORDER BY conflicts / {held} DESC, {place} LIMIT {MOST_EXAMPLES}"""
    names = (*scan.example_key, "key", "trained", "held", "nll", "conflicts")
    return {
        row[: len(scan.example_key)]: {
            **dict(zip(names, map(rounded, row), strict=False)),
            "kept": [short(v) for v in row[len(names) :]],
        }
        for row in rows(scan, query)
    }


def _filled(scan: Scan, chosen: Mapping[Key, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The chosen examples with text and tokens, a few at a time: texts can be long."""
    ids, key = list(chosen), scan.example_key
    columns = ", ".join((*key, "text"))
    for batch in (ids[i : i + 10] for i in range(0, len(ids), 10)):
        tokens = _tokens(scan, batch)
        query = f"SELECT {columns} FROM examples WHERE {_among(key, batch)}"
        texts = {tuple(place): text for *place, text in rows(scan, query)}
        for example in batch:
            if not tokens.get(example) or texts.get(example) is None:
                raise ScanError(
                    f"{scan.path} is damaged: {named_place(key, example)} has no token or text"
                )
            yield _fitting(chosen[example], texts[example], tokens[example])


def _tokens(scan: Scan, ids: Sequence[Key]) -> dict[Key, list[dict[str, Any]]]:
    """The tokens of some examples in order; of a long one, those around its first conflict."""
    key = ", ".join(scan.example_key)
    names = [
        *scan.token_key,
        "nth",
        "char_start",
        "char_end",
        "token",
        "conflict",
        "top1",
        *(c["name"] for c in columns(scan)),
    ]
    query = f"""
        WITH numbered AS (
            SELECT *, row_number() OVER (PARTITION BY {key} ORDER BY position) AS nth,
                   count(*) OVER (PARTITION BY {key}) AS n
            FROM tokens WHERE {_among(scan.example_key, ids)}
        ), places AS (SELECT *,
            coalesce(min(nth) FILTER (conflict) OVER (PARTITION BY {key}), 1) AS first
            FROM numbered)
        SELECT {", ".join(n if n == "nth" else or_null(scan, n) for n in names)} FROM places
        WHERE nth - greatest(least(first - 100, n - {MOST_EXAMPLE_TOKENS} + 1), 1)
              BETWEEN 0 AND {MOST_EXAMPLE_TOKENS - 1}
        ORDER BY {key}, position"""
    found = groupby(named(names, rows(scan, query)), itemgetter(*scan.example_key, "example"))
    return {place[:-1]: list(group) for place, group in found}


def _fitting(
    known: Mapping[str, Any], text: str, tokens: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The example in full; where that takes too many bytes, half of its tokens, and so on."""
    while True:
        found = {**known, **pieces(text, tokens, known["held"])}
        if len(tokens) == 1 or _size(found) <= EXAMPLE_BYTES:
            return found
        tokens = tokens[: len(tokens) // 2]


def pieces(text: str, tokens: Sequence[Mapping[str, Any]], held: int) -> dict[str, Any]:
    """The text cut at its tokens: a gap before each and one at the end, and their columns.

    `held` counts the example's tokens: where some are not shown, nor is the text they are in.
    """
    gaps: list[Gap] = []
    shown, at = [], 0
    for token in tokens:
        start, end = token["char_start"], token["char_end"]
        hidden = not gaps and token["nth"] > 1
        gaps.append(_gap(text[at:start], 0 if hidden else GAP))
        # A byte of a character stands where another byte has stood: it is shown by itself.
        shown.append(text[max(at, start) : end][:LONGEST] or token["token"])
        at = max(at, end)
    gaps.append(_gap(text[at:], 0 if tokens[-1]["nth"] < held else GAP))
    own = ("example", "turn", "nth", "char_start", "char_end", "token", "conflict")
    return {
        "gaps": gaps,
        "text": shown,
        "flags": [i for i, t in enumerate(tokens) if t["conflict"]],
        "columns": {n: [t[n] for t in tokens] for n in tokens[0] if n not in own},
    }


Gap = str | tuple[str, int, str]


def _gap(text: str, most: int) -> Gap:
    """The text, or both of its ends and how many characters between them are left out."""
    if len(text) <= most or not text:
        return text
    half = most // 2
    return text[:half], len(text) - 2 * half, text[len(text) - half :]


# --- from the scan, and how much of it ---


def within(items: Iterable[dict[str, Any]], most: int) -> Iterator[dict[str, Any]]:
    """The first items that take at most so many bytes of the page, and at least one."""
    taken = 0
    for item in items:
        taken, before = taken + _size(item) + 1, taken
        if taken > most and before:
            return
        yield item


def _size(item: Any) -> int:
    return len(encode(item).encode())


def columns(scan: Scan) -> list[dict[str, str]]:
    """The statistics a token can be coloured by, with unit and meaning."""
    return [
        {"name": s.name, "unit": s.unit, "meaning": s.meaning}
        for s in STATISTICS.values()
        if s.name in scan.columns and s.name != "top1_id"
    ]


def rows(scan: Scan, query: str) -> list[tuple[Any, ...]]:
    return scan.rows(query)


def or_null(scan: Scan, name: str) -> str:
    return name if name == "conflict" or name in scan.columns else f"NULL AS {name}"


def _among(key: Sequence[str], places: Sequence[Key]) -> str:
    """True of those examples; where each is a turn, of some other turns of their rows as well."""
    columns = zip(key, zip(*places, strict=True), strict=True)
    return " AND ".join(f"{name} IN ({', '.join(map(str, values))})" for name, values in columns)


def _quoted(name: str) -> str:
    return name.replace('"', '""')


def named(names: Sequence[str], found: Iterable[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(names, map(rounded, row), strict=True)) for row in found]


def rounded(value: Any) -> Any:
    """Four digits are what a reader can use, and half the bytes; no NaN in JSON."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def short(value: Any) -> str:
    """A value as a cell of a table, at most so long."""
    if isinstance(value, list):
        text = ", ".join(map(str, value))
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    else:
        text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def last_part(source: str) -> str:
    """The last part of an absolute path; a title needs no more, and provenance has it all."""
    return Path(source).name if Path(source).is_absolute() else source
