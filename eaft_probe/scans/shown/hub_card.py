"""README.md of a scan: what the hub shows of its folder, and its numbers for people.

It stands for one conflict rule, as conflicts.parquet does, and is written with it.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import yaml

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import ScanError
from eaft_probe.quantities import decimals, percent
from eaft_probe.scans.part_writer import CONFLICTS
from eaft_probe.storage.folder import Destination, Folder
from eaft_probe.text import in_one_line

if TYPE_CHECKING:
    from eaft_probe.scans.scan import Scan

CARD = "README.md"
CARD_BYTES = 1_000_000
MARK = "<!-- Rewritten by eaft-probe when the scan is flagged, as long as this line is here. -->"
# The name of each table, its files, and what a row of it is; the hub shows the first one first.
TABLES = (
    ("tokens", "tokens/*.parquet", "a scored token"),
    ("examples", "examples/*.parquet", "an example, with its text and its messages"),
    ("conflicts", CONFLICTS, "a confident conflict, with 80 characters of text on each side"),
)


def write_card(scan: "Scan", rule: ConflictRule, conflicts: int) -> None:
    """Unless the folder has a README of somebody else. Raises `OSError`."""
    folder = Folder(scan.path)
    if is_own_card(folder):
        folder.put(CARD, card(scan, rule, conflicts).encode())


def is_own_card(place: Destination) -> bool:
    """Whether README.md is an earlier card, or there is none."""
    with suppress(ScanError):
        text = place.get(CARD, CARD_BYTES)
        return text is None or MARK.encode() in text
    return False


def card(scan: "Scan", rule: ConflictRule, conflicts: int) -> str:
    """`conflicts`: how many rows conflicts.parquet has."""
    configs = [{"config_name": name, "data_files": files} for name, files, _ in TABLES]
    head = yaml.safe_dump({"configs": configs, "tags": ["eaft-probe"]}, sort_keys=False)
    data, model = scan.manifest["data"]["source"], scan.manifest["model"]["name"]
    columns = [
        (f"`{f.name}`", (f.metadata or {}).get(b"unit", b""), (f.metadata or {}).get(b"meaning"))
        for f in pq.read_schema(scan.part_files("tokens")[0])
    ]
    tables = [(f"`{name}`", meaning) for name, _, meaning in TABLES]
    return "\n".join(
        [
            f"---\n{head}---\n{MARK}\n",
            f"# {_code(data)} under {_code(model)}\n",
            "What a model makes of every token that training on these data would teach it, "
            "measured by eaft-probe.\n",
            _table(("", ""), _numbers(scan, rule, conflicts)),
            _table(("table", "one row is"), tables),
            _table(("column of `tokens`", "unit", "meaning"), columns),
        ]
    )


def _numbers(scan: "Scan", rule: ConflictRule, conflicts: int) -> list[tuple[str, str]]:
    counts = scan.manifest["counts"]
    numbers = [(n, f"{counts[n.replace(' ', '_')]:,}") for n in ("rows", "rejected", "examples")]
    numbers.append(("trained tokens", f"{counts['trained_tokens']:,}"))
    if not scan.keeps_all:
        numbers.append(("of them kept here", f"{scan.kept:,} ({scan.keep_tokens})"))
    if not scan.keep_tokens.startswith("sample"):  # which has some of the conflicts
        share = percent(conflicts / max(counts["trained_tokens"], 1))
        numbers.append(("confident conflicts", f"{conflicts:,} ({share})"))
    numbers.append(("conflict rule", str(rule)))
    if scan.keeps_all:
        numbers += [(f"mean {n}", f"{decimals(mean)} nats") for n, mean in _means(scan).items()]
    return numbers


def _means(scan: "Scan") -> dict[str, float]:
    """Over all scored tokens, from those of the examples."""
    parts = (
        scan.example_part(part, ["trained_tokens", "mean_nll", "mean_entropy"])
        for part in range(len(scan.manifest["parts"]))
    )
    sums = np.zeros(3)
    for part in parts:
        tokens, nll, entropy = (c.to_numpy().astype(np.float64) for c in part.columns)
        sums += tokens.sum(), (tokens * nll).sum(), (tokens * entropy).sum()
    return {"nll": sums[1] / max(sums[0], 1), "entropy": sums[2] / max(sums[0], 1)}


def _table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = (" | ".join(map(_cell, row)) for row in (names, ("---",) * len(names), *rows))
    return "".join(f"| {line} |\n" for line in lines)


def _cell(value: object) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
    return in_one_line(text).replace("|", "\\|").replace("<", "&lt;")


def _code(name: str) -> str:
    """Somebody's name for a file or a model, which formats nothing here."""
    return f"`{in_one_line(name.replace('`', ''))}`"
