"""`show --export`: the examples back as rows, each with its loss, entropy and conflicts."""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from eaft_probe.columns.table import Scan
from eaft_probe.errors import ProbeError, ScanError, one_line
from eaft_probe.files import written_aside


def export(scan: Scan, path: str | Path) -> int:
    """Writes one JSON line an example, in the order of the data, and returns how many.

    Each has `example`, `key`, `messages` (or `text`), `mean_nll`, `mean_entropy`, `conflicts`,
    `trained_tokens` and the pass-through columns. Raises `ProbeError` where it cannot write.
    """
    scan.require_all("--export")
    path, written = Path(path), 0
    counts = "SELECT example, count(*) FROM conflicts GROUP BY example"
    conflicts = dict(scan.rows(counts))
    try:
        with written_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
            for part in range(len(scan.manifest["parts"])):
                for row in scan.example_part(part).to_pylist():
                    line = _row(row, scan, conflicts.get(row["example"], 0))
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    written += 1
    except OSError as error:
        raise ProbeError(f"cannot write {path}: {one_line(error)}") from error
    return written


_MESSAGES = TypeAdapter(list[dict[str, Any]])


def _row(row: dict[str, Any], scan: Scan, conflicts: int) -> dict[str, Any]:
    try:
        messages = _MESSAGES.validate_json(row.pop("messages") or "")
        body = _body(messages, row.pop("text"), scan.manifest["data"]["format"])
    except (ValueError, KeyError, IndexError) as error:
        raise ScanError(f"{scan.path} is damaged: the messages of example {row['example']} are "
                        f"none") from error  # fmt: skip
    place = {"example": row.pop("example"), "key": row.pop("key")}
    return {**place, **body, **row, "conflicts": conflicts}


def _body(messages: list[dict[str, Any]], text: str, row_format: str) -> dict[str, Any]:
    """The row in a shape that scans as it did: plain text must not come back as a chat."""
    if row_format == "prompt-completion" and [m["role"] for m in messages] == ["user", "assistant"]:
        return {"prompt": messages[0]["content"], "completion": messages[1]["content"]}
    if row_format == "text":
        return {"text": messages[0]["content"]}
    return {"messages": messages} if messages else {"text": text}
