"""--fail-if: a comparison with a number of the JSON."""

import operator
import re
from collections.abc import Callable, Iterator, Mapping

from eaft_probe.errors import BadInput

Check = Callable[[Mapping[str, object]], bool]
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
COMPARISON = re.compile(rf"\s*([\w.-]+)\s*(<=|>=|<|>|==)\s*({NUMBER})\s*")
OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}


def parse_check(text: str | None) -> Check | None:
    """--fail-if 'key>number' as a predicate on the JSON summary."""
    if text is None:
        return None
    match = COMPARISON.fullmatch(text)
    if match is None:
        raise BadInput(
            f"--fail-if takes a comparison such as 'conflict_share>0.03', found {text!r}"
        )
    key, sign, limit = match.groups()
    return lambda summary: bool(OPERATORS[sign](_number(summary, key), float(limit)))


def _number(summary: Mapping[str, object], key: str) -> float:
    numbers = dict(_numbers(summary))
    if key not in numbers:
        outer = [k for k in numbers if k.count(".") == 0]
        inner = [f"{k} and similar" for k in numbers if k.count(".") == 2]  # groups.conflict.tokens
        raise BadInput(
            f"--fail-if: unknown number {key!r}; available: {', '.join([*outer, *inner[:1]])}"
        )
    return numbers[key]


def _numbers(summary: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of the JSON with its key; inside an object, the keys joined by dots."""
    for key, value in summary.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value
