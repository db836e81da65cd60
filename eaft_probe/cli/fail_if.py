"""--fail-if: a comparison over a number of the JSON."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from eaft_probe.errors import BadInput

GATE = re.compile(r"\s*([\w.]+)\s*(<=|>=|<|>|==)\s*([-+.\deE]+)\s*")


def parsed_gate(text: str | None) -> Callable[[Mapping[str, Any]], bool] | None:
    """--fail-if 'key>number' as a predicate on the JSON summary."""
    if text is None:
        return None
    found = GATE.fullmatch(text)
    try:
        limit = float(found[3]) if found else None
    except ValueError:
        limit = None
    if found is None or limit is None:
        raise BadInput(
            f"--fail-if takes a comparison such as 'conflict_share>0.03', found {text!r}"
        )
    name, sign = found[1], found[2]

    def tripped(summary: Mapping[str, Any]) -> bool:
        numbers = dict(_numbers(summary))
        if name not in numbers:
            outer = [k for k in numbers if k.count(".") == 0]
            inner = [k for k in numbers if k.count(".") == 2][:1]  # groups.conflict.tokens
            said = ", ".join([*outer, *(f"{k} and the like" for k in inner)])
            raise BadInput(f"--fail-if: no number {name!r}; there are {said}")
        value = numbers[name]
        return {
            "<": value < limit,
            "<=": value <= limit,
            ">": value > limit,
            ">=": value >= limit,
            "==": value == limit,
        }[sign]

    return tripped


def _numbers(summary: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Every number of the JSON with its key; inside an object, the keys joined by dots."""
    for key, value in summary.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{key}.")
        elif isinstance(value, int | float):
            yield f"{before}{key}", value
