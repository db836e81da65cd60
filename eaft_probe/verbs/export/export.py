"""`show --export`: the rows back, each with its loss, entropy and conflicts."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from eaft_probe.data.readers import LONGEST_ROW
from eaft_probe.data.sources import require_outside
from eaft_probe.errors import ProbeError, ScanError, one_line
from eaft_probe.scans.folder import stored_plan
from eaft_probe.scans.scan import Scan
from eaft_probe.storage.atomic import require_replaceable, written_aside

Row = dict[str, Any]  # of JSON
# What every line has, by which an earlier export is known.
OWN = {"example", "key", "mean_nll", "mean_entropy", "conflicts", "trained_tokens"}


def export(scan: Scan, path: str | Path, overwrite: bool = False) -> int:
    """Writes one JSON line a row, in the order of the data, and returns how many.

    Each has `example`, `key`, `messages` (or `text`), `mean_nll`, `mean_entropy`, `conflicts`,
    `tokens`, `trained_tokens` and the pass-through columns; where each turn is an example of its
    own, over all turns of the row. Raises `ProbeError` where it cannot write,
    and `BadInput` where `path` lies in the data, or is another file than an earlier export (which
    `overwrite` replaces).
    """
    scan.require_all("--export")
    require_outside(path, stored_plan(scan).get("data", {}).get("source"), "--export")
    path, written = Path(path), 0
    if not overwrite:
        require_replaceable(path, "export", _is_export)
    conflicts = dict(scan.rows("SELECT example, count(*) FROM conflicts GROUP BY example"))
    try:
        with written_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
            for part in range(len(scan.manifest["parts"])):
                for row in _rows(scan, part):
                    line = _row(row, scan, conflicts.get(row["example"], 0))
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    written += 1
    except OSError as error:
        raise ProbeError(f"cannot write {path}: {one_line(error)}") from error
    return written


def _is_export(path: Path) -> bool:
    with path.open("rb") as file, suppress(ValueError, RecursionError):
        row = json.loads(file.readline(LONGEST_ROW))
        return isinstance(row, dict) and row.keys() >= OWN
    return False


def _rows(scan: Scan, part: int) -> Iterator[Row]:
    """The examples of a part; those that are turns of one row as one."""
    for _, turns in groupby(scan.example_part(part).to_pylist(), itemgetter("example")):
        row, *others = turns
        row.pop("turn", None)
        yield row | (_over_turns([row, *others]) if others else {})


def _over_turns(turns: Sequence[Row]) -> Row:
    """The sums over the turns of a row, and the means over their trained tokens."""
    sums = {n: sum(turn[n] or 0 for turn in turns) for n in ("tokens", "trained_tokens")}
    means = {
        name: sum((turn[name] or 0) * (turn["trained_tokens"] or 0) for turn in turns)
        / max(sums["trained_tokens"], 1)
        for name in ("mean_nll", "mean_entropy")
    }
    return sums | means


_MESSAGES = TypeAdapter(list[Row])


def _row(row: Row, scan: Scan, conflicts: int) -> Row:
    try:
        messages = _MESSAGES.validate_json(row.pop("messages") or "")
        body = _body(messages, row.pop("text"), scan.manifest["data"]["format"])
    except (ValueError, KeyError, IndexError) as error:
        raise ScanError(
            f"{scan.path} is damaged: the messages of example {row['example']} cannot be read"
        ) from error
    return {
        "example": row.pop("example"),
        "key": row.pop("key"),
        **body,
        **row,
        "conflicts": conflicts,
    }


def _body(messages: list[Row], text: str, row_format: str) -> Row:
    """The row in a shape that scans as it did: plain text must not come back as a chat."""
    if row_format == "prompt-completion" and [m["role"] for m in messages] == ["user", "assistant"]:
        return {"prompt": messages[0]["content"], "completion": messages[1]["content"]}
    if row_format == "text":
        return {"text": messages[0]["content"]}
    return {"messages": messages} if messages else {"text": text}
