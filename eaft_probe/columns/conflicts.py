"""The conflict rule: a predicate on columns, stored with the scan and the tokens it flags."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eaft_probe.errors import BadInput, ScanError, one_line
from eaft_probe.storage.atomic import file_inside, read_json, write_json

# 0.17 of the largest entropy over 20 tokens, the centre of the sigmoid gate in arXiv 2601.02151.
ENTROPY_BELOW = 0.17 * math.log(20)  # 0.509 nats
# Entropy is at least the binary entropy of p, so below 0.509 nats p is under 0.207 or over 0.793.
PROB_BELOW = 0.2
RULE_FILE = "rule.json"
MOST_BYTES = 10_000  # of its file
FLOAT_MAX = 3.4028234663852886e38  # thresholds are compared as float32


@dataclass(frozen=True, slots=True)
class ConflictRule:
    """A token is a confident conflict where its entropy and its probability are both low, or where
    its surprise is high.

    Thresholds are compared as float32, the type of the columns. `quantile` and `rate` say where
    they came from: the scan's own quantiles, or the share of the model's own tokens that they flag.
    """

    entropy_below: float = ENTROPY_BELOW  # nats
    prob_below: float = PROB_BELOW
    quantile: float | None = None
    surprise_above: float | None = None  # instead of the pair
    rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("entropy_below", "prob_below", "surprise_above"):
            value = getattr(self, name)
            if value is not None:  # a NumPy float would compare in float64
                object.__setattr__(self, name, float(value))
        thresholds = (self.entropy_below, self.prob_below, self.surprise_above or 0.0)
        if not all(abs(t) <= FLOAT_MAX for t in thresholds):
            raise BadInput("the thresholds of a conflict rule are finite numbers that fit float32")
        for name in ("quantile", "rate"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise BadInput(f"--{name} is a number between 0 and 1, found {share}")

    @classmethod
    def of(
        cls,
        entropy_below: float | None,
        prob_below: float | None,
        quantile: float | None,
        surprise_above: float | None = None,
    ) -> "ConflictRule":
        """The rule with its defaults where nothing is given."""
        return cls(
            ENTROPY_BELOW if entropy_below is None else entropy_below,
            PROB_BELOW if prob_below is None else prob_below,
            quantile,
            surprise_above,
        )

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that it looks at."""
        return ("entropy", "prob") if self.surprise_above is None else ("surprise",)

    def __call__(self, columns: Mapping[str, Any]) -> Any:
        """A boolean array or tensor like the columns that it `reads`."""
        if self.surprise_above is not None:
            return columns["surprise"] > self.surprise_above
        return (columns["entropy"] < self.entropy_below) & (columns["prob"] < self.prob_below)

    @property
    def sql(self) -> str:
        """The same predicate for DuckDB, rounded to float32 as NumPy and torch round it."""
        if self.surprise_above is not None:
            return f"(surprise > CAST({self.surprise_above!r} AS FLOAT))"
        return (
            f"(entropy < CAST({self.entropy_below!r} AS FLOAT) "
            f"AND prob < CAST({self.prob_below!r} AS FLOAT))"
        )

    def __str__(self) -> str:
        origin = "" if self.quantile is None else f" (the lowest {self.quantile:g} of both)"
        if self.rate is not None:
            origin = f" (at most {self.rate:g} of the model's own tokens)"
        if self.surprise_above is not None:
            return f"surprise > {self.surprise_above:.3g}{origin}"
        return f"entropy < {self.entropy_below:.3g} nats and prob < {self.prob_below:.3g}{origin}"

    @property
    def thresholds(self) -> str:
        """Its thresholds, to the last digit."""
        pair = [self.entropy_below, self.prob_below]
        return json.dumps(pair if self.surprise_above is None else {"above": self.surprise_above})

    def as_dict(self) -> dict[str, float | None]:
        """What counts of it, for JSON."""
        pair = ("entropy_below", "prob_below")
        named = {n: v for n, v in asdict(self).items() if v is not None or n == "quantile"}
        return {n: v for n, v in named.items() if self.surprise_above is None or n not in pair}

    def save(self, folder: Path) -> None:
        write_json(folder / RULE_FILE, self.as_dict())

    @classmethod
    def load(cls, folder: Path) -> "ConflictRule":
        """The rule a scan is flagged with; the default where none was stored."""
        path = folder / RULE_FILE
        if not path.exists():
            return cls()
        try:
            return cls(**read_json(file_inside(folder, RULE_FILE), MOST_BYTES))
        except (ValueError, TypeError, OverflowError, BadInput) as error:
            why = "" if isinstance(error, ScanError) else f"{path} is damaged: "
            raise ScanError(
                f"{why}{one_line(error)}; `eaft-probe flag` writes a new one"
            ) from error
