"""What of a scan a page shows in full: tokens in context, pairs and examples, within a byte budget.

The choice is the same on every run: ties and draws are decided by a hash of a token's place.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from eaft_probe.analysis.aggregates import CELL, counted
from eaft_probe.analysis.scores import SCORES, Score, available_scores, worst_of_each
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.errors import ScanError
from eaft_probe.scans.alignment import ALIGNMENT_COLUMNS
from eaft_probe.scans.keys import named_place
from eaft_probe.scans.scan import Scan
from eaft_probe.view.report.page import encode

Record = dict[str, Any]  # JSON values by name
Key = tuple[int, ...]  # what tells an example from others

# 8 MB in all: the page takes 0.95, a landscape with millions of tokens and of conflicts in every
# cell 2.9, all the rest under 0.4. Several scans share tokens and examples; each has a landscape.
TOKENS_BYTES, EXAMPLES_BYTES = 1_200_000, 2_500_000
EXAMPLE_BYTES = 400_000  # one example's share: a longer one is shown in part
MOST_CONFLICTS, MOST_OTHERS = 1_500, 2_500  # tokens that can be listed from the landscape
MOST_EXAMPLES, MOST_EXAMPLE_TOKENS, MOST_PAIRS = 300, 2_000, 40
OF_KEPT = {  # row scores of a scan that did not keep all of its tokens
    "conflict_share": "sum(coalesce(n, 0)) / sum(held)",
    "mean_nll": "sum(mean_nll * trained_tokens) / sum(trained_tokens)",
}
PAIR = ("token", "top1", "conflicts", "prob", "top1_prob")
CONTEXT, GAP, LONGEST = 60, 1_000, 300  # characters: around a token, between tokens, of a name
# A token of the views `tokens` and `examples` in its text.
IN_CONTEXT = {
    "before": f"substr(text, greatest(char_start - {CONTEXT}, 0) + 1, "
    f"least(char_start, {CONTEXT}))",
    "token": "token",
    "after": f"substr(text, char_end + 1, {CONTEXT})",
}


def listed(scan: Scan, summary: Mapping[str, Any], share: float) -> Record:
    """Tokens in context, conflicts first: evenly over the landscape and the same on every run.

    `share`: of the page's tokens and bytes.
    """
    kinds = ((True, MOST_CONFLICTS), (False, MOST_OTHERS))
    sample = [t for conflict, most in kinds for t in _sample(scan, conflict, int(share * most))]
    tokens = list(within(sample, share * TOKENS_BYTES))
    if not tokens:
        raise ScanError(f"{scan.path} is damaged: its tokens belong to no example")
    return {
        "names": list(tokens[0]),
        "rows": [list(token.values()) for token in tokens],
        "conflicts": sum(token["conflict"] for token in tokens),
        "of_conflicts": summary["conflicts"],
        "of": summary["trained_tokens"],
    }


def _sample(scan: Scan, conflict: bool, most: int) -> list[Record]:
    """Round after round one token from each cell of 1/32 by 1/2 nat, by a hash of its place."""
    key, place = (", ".join(k) for k in (scan.example_key, scan.token_key))
    numbers = available(scan, "prob", "entropy", "rank", "top1", "top1_prob", *scan.token_key)
    token = struct(**IN_CONTEXT, **numbers, conflict="conflict", cell=CELL)
    query = f"""
        WITH cells AS (
            SELECT min_by({struct(*scan.token_key)}, hash({place}), 500) AS chosen
            FROM tokens WHERE conflict = {conflict} GROUP BY floor(prob * 32), floor(entropy * 2)
        ), rounds AS (SELECT unnest(chosen, recursive := true), unnest(range(len(chosen))) AS round
            FROM cells
        ), sample AS (SELECT *, hash({place}) AS mixed FROM rounds
            ORDER BY round, mixed LIMIT {most})
        SELECT {token} FROM sample JOIN tokens USING ({place})
             JOIN (SELECT {key}, text FROM examples) USING ({key})
        ORDER BY round, mixed"""
    return [rounded(token) for (token,) in scan.rows(query)]


# --- pairs and examples ---


def pairs(scan: Scan) -> Record:
    """The commonest (label, model's choice) among the conflicts, each with three places."""
    whole = counted(scan)
    rows = [rounded(dict(zip(PAIR, row, strict=True))) for row in whole.pairs(MOST_PAIRS)]
    place = struct("before", "after", *scan.token_key)
    query = f"""
        WITH wanted AS (SELECT unnest(?) AS token, unnest(?) AS top1)
        SELECT token, top1, min_by({place}, hash({", ".join(scan.token_key)}), 3)
        FROM conflicts JOIN wanted USING (token, top1) GROUP BY token, top1"""
    wanted = [[row[name] for row in rows] for name in ("token", "top1")]
    places = {(token, top1): three for token, top1, three in scan.rows(query, wanted)}
    for row in rows:
        row["places"] = places.get((row["token"], row["top1"]), [])
    return {"rows": rows, "of": whole.pair_kinds()}


def examples(scan: Scan, share: float) -> Record:
    """Whole examples, the worst under any row score first, within their share of the bytes."""
    scores = available_scores(scan) if scan.keeps_all else [SCORES[n] for n in OF_KEPT]
    ranked = _ranked(scan, scores)
    rows = list(within(_filled(scan, _chosen(scan, ranked)), share * EXAMPLES_BYTES))
    return {
        "rows": rows,
        "of": scan.renderings,
        "noun": "turn" if scan.by_turn else "example",
        "kept": counted(scan).kept_columns(),
        "scores": [
            {"name": s.name, "unit": s.unit, "meaning": s.meaning, "falls": s.largest_first}
            for s in scores
        ],
        # So many of the worst rows are here for certain, whichever score orders them.
        "complete": int(ranked["place"][rows[-1]["example"]]) - 1,
    }


def _ranked(scan: Scan, scores: Sequence[Score]) -> pandas.DataFrame:
    """By example its scores and its `place`, the best in the rankings by them; some of the worst.

    A scan that did not keep all of its tokens knows the shares among those that it has.
    """
    if scan.keeps_all:
        return worst_of_each(scan, scores, MOST_EXAMPLES).set_index("example")
    scored = ", ".join(f"{value} AS {name}" for name, value in OF_KEPT.items())
    places = (f"row_number() OVER (ORDER BY {name} DESC, example)" for name in OF_KEPT)
    query = f"""
        SELECT *, least({", ".join(places)}) AS place
        FROM (SELECT example, {scored} FROM {_counts(scan)} GROUP BY example)
        ORDER BY place, example LIMIT {MOST_EXAMPLES}"""
    return scan.frame(query).set_index("example")


def _chosen(scan: Scan, ranked: pandas.DataFrame) -> dict[Key, Record]:
    """Example → what is known of it without its text, in the order of the page."""
    quoted = (name.replace('"', '""') for name in counted(scan).kept_columns())
    kept = "".join(f', "{name}"' for name in quoted)
    columns = {
        "key": f"key[:{LONGEST}]",
        "trained": "trained_tokens",
        "held": "held",
        "nll": "mean_nll",
        "conflicts": "coalesce(n, 0)",
    }
    query = f"""
        SELECT {struct(*scan.example_key, **columns)}{kept}
        FROM {_counts(scan)}
             JOIN (SELECT unnest(?) AS example, unnest(?) AS place) USING (example)
        ORDER BY place, {", ".join(scan.example_key)} LIMIT {MOST_EXAMPLES}"""
    places = [ranked.index.tolist(), ranked["place"].tolist()]
    scores = ranked.drop(columns="place").to_dict("index")
    return {
        tuple(example[name] for name in scan.example_key): {
            **rounded(example),
            "scores": rounded(scores[example["example"]]),
            "kept": [short(v) for v in values],
        }
        for example, *values in scan.rows(query, places)
    }


def _counts(scan: Scan) -> str:
    """The examples with the tokens `held` of each, and with `n` conflicts where it has some."""
    key, held = ", ".join(scan.example_key), "trained_tokens AS held FROM examples"
    if not scan.keeps_all:
        held = f"count(*) AS held FROM tokens GROUP BY {key}"
    return f"""examples JOIN (SELECT {key}, {held}) USING ({key})
             LEFT JOIN (SELECT {key}, count(*) AS n FROM conflicts GROUP BY {key}) USING ({key})"""


def _filled(scan: Scan, chosen: Mapping[Key, Record]) -> Iterator[Record]:
    """The chosen examples with text and tokens, a few at a time: texts can be long."""
    keys = list(chosen)
    for batch in (keys[i : i + 10] for i in range(0, len(keys), 10)):
        texts = _texts_and_tokens(scan, batch)
        for key in batch:
            text, tokens = texts.get(key, (None, []))
            if text is None:
                name = named_place(scan.example_key, key)
                raise ScanError(f"{scan.path} is damaged: {name} has no token or text")
            yield _fitting(chosen[key], text, [rounded(token) for token in tokens])


def _texts_and_tokens(
    scan: Scan, keys: Sequence[Key]
) -> dict[Key, tuple[str | None, list[Record]]]:
    """The text and the tokens of some examples; of a long one, those around its first conflict."""
    key = ", ".join(scan.example_key)
    shown = ("char_start", "char_end", "token", "top1", *(c["name"] for c in columns(scan)))
    token = struct("nth", "conflict", **available(scan, *scan.token_key, *shown))
    query = f"""
        WITH numbered AS (
            SELECT *, row_number() OVER (PARTITION BY {key} ORDER BY position) AS nth,
                   count(*) OVER (PARTITION BY {key}) AS n
            FROM tokens WHERE {_among(scan.example_key, keys)}
        ), places AS (SELECT *,
            coalesce(min(nth) FILTER (conflict) OVER (PARTITION BY {key}), 1) AS first
            FROM numbered
        ), chosen AS (SELECT {key}, list({token} ORDER BY position) AS shown FROM places
            WHERE nth - greatest(least(first - 100, n - {MOST_EXAMPLE_TOKENS} + 1), 1)
                  BETWEEN 0 AND {MOST_EXAMPLE_TOKENS - 1}
            GROUP BY {key})
        SELECT {key}, text, shown FROM chosen JOIN examples USING ({key})"""
    return {tuple(place): (text, tokens) for *place, text, tokens in scan.rows(query)}


def _fitting(known: Record, text: str, tokens: Sequence[Record]) -> Record:
    """The example in full; if that takes too many bytes, half of its tokens, and so on."""
    example = {**known, **pieces(text, tokens, known["held"])}
    if len(tokens) == 1 or _size(example) <= EXAMPLE_BYTES:
        return example
    return _fitting(known, text, tokens[: len(tokens) // 2])


def pieces(text: str, tokens: Sequence[Record], held: int) -> Record:
    """The text cut at its tokens: a gap before each and one at the end, and their columns.

    `held` counts the example's tokens: if some are not shown, nor is the text they are in.
    """
    gaps: list[Gap] = []
    texts, at = [], 0
    for token in tokens:
        start, end = token["char_start"], token["char_end"]
        hidden = not gaps and token["nth"] > 1
        gaps.append(_gap(text[at:start], 0 if hidden else GAP))
        # A byte of a character at the place of another byte: it is shown by itself.
        texts.append(text[max(at, start) : end][:LONGEST] or token["token"])
        at = max(at, end)
    gaps.append(_gap(text[at:], 0 if tokens[-1]["nth"] < held else GAP))
    hidden_columns = ("example", "turn", "nth", "char_start", "char_end", "token", "conflict")
    return {
        "gaps": gaps,
        "text": texts,
        "flags": [i for i, t in enumerate(tokens) if t["conflict"]],
        "columns": {n: [t[n] for t in tokens] for n in tokens[0] if n not in hidden_columns},
    }


Gap = str | tuple[str, int, str]


def _gap(text: str, most: int) -> Gap:
    """The text, or both of its ends and how many characters between them are left out."""
    if len(text) <= most or not text:
        return text
    half = most // 2
    return text[:half], len(text) - 2 * half, text[len(text) - half :]


# --- from the scan, and how much of it ---


def within(items: Iterable[Record], most: float) -> Iterator[Record]:
    """The first items that take at most so many bytes of the page, and at least one."""
    total = 0
    for item in items:
        size = _size(item) + 1
        if total and total + size > most:
            return
        total += size
        yield item


def _size(item: Record) -> int:
    return len(encode(item).encode())


def columns(scan: Scan) -> list[dict[str, str]]:
    """The statistics a token can be coloured by, with unit and meaning."""
    known = [(s.name, s.unit, s.meaning) for s in STATISTICS.values() if not s.alone]
    known += [(name, "", meaning) for name, meaning in ALIGNMENT_COLUMNS.items()]
    return [
        {"name": name, "unit": unit, "meaning": meaning}
        for name, unit, meaning in known
        if name in scan.columns and name != "top1_id"
    ]


def struct(*names: str, **expressions: str) -> str:
    """Columns, and expressions by name, as one value of DuckDB, which is a dict here."""
    pairs = {**{name: name for name in names}, **expressions}
    return "{" + ", ".join(f"'{name}': {value}" for name, value in pairs.items()) + "}"


def available(scan: Scan, *names: str) -> dict[str, str]:
    """The columns of tokens; NULL for those that the scan does not have."""
    return {name: name if name in scan.columns else "NULL" for name in names}


def _among(names: Sequence[str], keys: Sequence[Key]) -> str:
    """True of those examples; if each is a turn, also of some other turns of their rows."""
    columns = zip(names, zip(*keys, strict=True), strict=True)
    return " AND ".join(f"{name} IN ({', '.join(map(str, values))})" for name, values in columns)


def rounded(record: Mapping[str, Any]) -> Record:
    """Four digits are what a reader can use, and half the bytes; no NaN in JSON."""
    return {name: _rounded(v) if isinstance(v, float) else v for name, v in record.items()}


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def short(value: object) -> str:
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
