"""What is counted of tokens by group: the queries, over the tokens of a scan or of one unit."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

MOST_VALUES = 10  # of a pass-through column that is grouped by

Rows = Callable[[str], Sequence[tuple[Any, ...]]]  # what a query gives


class Counts:
    """Over the views `tokens` (with `conflict`), `examples` and `conflicts` that `rows` queries.

    `special`: the tokenizer's added tokens; `key`: the columns that tell examples apart. Examples
    are counted as rows of the data, also where each turn of a row is one of its own.
    """

    def __init__(self, rows: Rows, special: Iterable[str], key: Sequence[str]) -> None:
        self.rows, self.special, self.key = rows, frozenset(special), ", ".join(key)

    def examples_with_conflicts(self) -> int:
        return int(self.rows("SELECT count(DISTINCT example) FROM conflicts")[0][0])

    def roles(self) -> list[tuple[str, int, int]]:
        """(role of the message, tokens, conflicts); "text" where there is none."""
        query = f"""
            WITH turns AS (SELECT example, turn, count(*) AS n, count(*) FILTER (conflict) AS c
                           FROM tokens GROUP BY example, turn)
            SELECT coalesce(json_extract_string(messages, '$[' || turn || '].role'), 'text'),
                   CAST(sum(n) AS BIGINT), CAST(sum(c) AS BIGINT)
            FROM turns JOIN (SELECT {self.key}, messages FROM examples) USING ({self.key})
            GROUP BY 1 ORDER BY 1"""
        return [(str(role), int(n), int(c)) for role, n, c in self.rows(query)]

    def classes(self) -> list[tuple[str, int, int]]:
        """(class of the label, tokens, conflicts): grouped by text first, at most V rows."""
        sums: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        query = (
            "SELECT CAST(token AS VARCHAR), count(*), count(*) FILTER (conflict) "
            "FROM tokens GROUP BY 1"
        )
        for token, n, c in self.rows(query):
            of_class = sums[token_class(token or "", self.special)]
            of_class[0], of_class[1] = of_class[0] + n, of_class[1] + c
        return [(kind, *sums[kind]) for kind in sorted(sums)]  # type: ignore[misc]

    def pairs(self, most: int | None = None) -> list[tuple[str, str, int, float, float]]:
        """(label, model's choice, conflicts, mean prob, mean top1_prob), the commonest first."""
        limit = "" if most is None else f"LIMIT {most}"
        query = f"""
            SELECT token, top1, count(*) AS n, avg(prob), avg(top1_prob) FROM conflicts
            GROUP BY token, top1 ORDER BY n DESC, token, top1 {limit}"""
        return [(a, b, int(n), *means) for a, b, n, *means in self.rows(query)]  # type: ignore[misc]

    def pair_kinds(self) -> int:
        return int(self.rows("SELECT count(DISTINCT (token, top1)) FROM conflicts")[0][0])

    def values(self, name: str) -> int:
        """How many values a pass-through column has."""
        return int(self.rows(f"SELECT count(DISTINCT {_quoted(name)}) FROM examples")[0][0])

    def kept(self, name: str) -> list[tuple[str | None, int, int]]:
        """(value of a pass-through column, examples, those with a conflict)."""
        query = f"""
            SELECT {_quoted(name)}, count(DISTINCT example),
                   count(DISTINCT example) FILTER (example IN (SELECT example FROM conflicts))
            FROM examples GROUP BY 1 ORDER BY 1"""
        return [(value, int(n), int(c)) for value, n, c in self.rows(query)]


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def token_class(token: str, special: frozenset[str]) -> str:
    """What kind of text a token is.

    >>> [token_class(t, frozenset(["</s>"])) for t in ("</s>", " \\n", " 42", ".", " and")]
    ['end of turn', 'white space', 'digits', 'punctuation', 'words']
    """
    if token in special:
        return "end of turn"
    if not token.strip():
        return "white space"
    if re.search(r"\d", token) and not re.search(r"[^\W\d_]", token):
        return "digits"
    return "words" if re.search(r"\w", token) else "punctuation"
