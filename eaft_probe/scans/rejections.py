"""The rows that a scan could not score, and why."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from eaft_probe.errors import ScanError, one_line
from eaft_probe.scans.part_writer import REJECTED
from eaft_probe.scans.scan import Scan
from eaft_probe.storage.atomic import file_inside

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


def summed_reasons(given: Iterator[str]) -> dict[str, int]:
    """Reasons that differ in numbers alone are one, in which N stands for them.

    >>> summed_reasons(iter(["message 2 has no role", "message 4 has no role", "message 1: x"]))
    {'message N has no role': 2, 'message 1: x': 1}
    """
    rows, wordings = Counter[str](), dict[str, str]()
    for reason in given:
        general = _NUMBER.sub("N", reason)
        if general not in rows and len(rows) >= MOST_REASONS:
            general = reason = OTHERS
        rows[general] += 1
        if wordings.setdefault(general, reason) != reason:
            wordings[general] = general
    return {wordings[general]: count for general, count in rows.most_common()}
