"""The rows that a scan could not score, and why."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from eaft_probe.errors import ScanError, one_line
from eaft_probe.quantities import counted_noun
from eaft_probe.scans.part_writer import REJECTED
from eaft_probe.scans.scan import Scan
from eaft_probe.storage.atomic import file_inside

MOST_SHOWN = 5
MOST_REASONS, OTHERS = 1000, "other reasons"  # a template may give each row one of its own
_NUMBER = re.compile(r"\d[\d,]*")


def rejected(scan: Scan) -> Iterator[dict[str, Any]]:
    """The lines of rejected.jsonl. Raises `ScanError` where they are not as many as counted."""
    path, wanted, seen = scan.path / REJECTED, int(scan.manifest["counts"]["rejected"]), 0
    if wanted or path.exists():
        try:
            with file_inside(scan.path, REJECTED).open(encoding="utf-8") as file:
                for line in file:
                    seen += 1
                    row = json.loads(line)
                    yield {**row, "row": int(row["row"])}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ScanError(f"{path} is damaged: {one_line(error)}") from error
    if seen != wanted:
        raise ScanError(f"{path} lists {seen:,} rows, the manifest says {wanted:,}")


def reasons(scan: Scan) -> dict[str, int]:
    """Each reason with its rows, the most frequent first. Raises `ScanError`."""
    return summed_reasons(str(row.get("reason")) for row in rejected(scan))


def summed_reasons(given: Iterable[str]) -> dict[str, int]:
    """Reasons that differ in numbers alone are one, in which N stands for them.

    >>> summed_reasons(["message 2 has no role", "message 4 has no role", "message 1: x"])
    {'message N has no role': 2, 'message 1: x': 1}
    """
    sums = Reasons()
    for reason in given:
        sums.add(reason)
    return sums.summed()


class Reasons:
    """See `summed_reasons`; the memory is that of MOST_REASONS."""

    def __init__(self) -> None:
        self._rows, self._wordings = Counter[str](), dict[str, str]()

    def add(self, reason: str) -> None:
        general = _NUMBER.sub("N", reason)
        if general not in self._rows and len(self._rows) >= MOST_REASONS:
            general = reason = OTHERS
        self._rows[general] += 1
        if self._wordings.setdefault(general, reason) != reason:
            self._wordings[general] = general

    def summed(self) -> dict[str, int]:
        """Each reason with its rows, the most frequent first."""
        return {self._wordings[general]: count for general, count in self._rows.most_common()}


def reason_lines(summed: Mapping[str, int]) -> list[str]:
    """The most frequent reasons in words, and how many rows have another one."""
    reasons = list(summed.items())
    shown = [f"{counted_noun(n, 'row')}: {reason}" for reason, n in reasons[:MOST_SHOWN]]
    rest = sum(n for _, n in reasons[MOST_SHOWN:])
    return [*shown, *([f"{counted_noun(rest, 'row')}: {OTHERS}"] if rest else [])]
