"""What a chat template did with the data, in sentences."""

from collections.abc import Mapping
from typing import Any

from eaft_probe.text import printable


def template_notices(summary: Mapping[str, Any]) -> list[str]:
    """Of a scan's summary; nothing where the template shows everything and ends every turn."""
    told = list[str]()
    if summary.get("left_out"):
        told.append(f"The chat template does not show {left_out(summary['left_out'])}.")
    if count := summary.get("not_shown"):
        told.append(
            f"Turns that are not trained because the chat template does not show them: {count:,}."
        )
    if count := summary.get("closed"):
        told.append(
            f"Last turns that the chat template leaves open, ended here as it ends earlier "
            f"ones: {count:,}."
        )
    return told


def left_out(characters: Mapping[str, int]) -> str:
    """Role and field with the characters of text that are not shown."""
    return ", ".join(f"{n:,} characters of {printable(what)}" for what, n in characters.items())
