"""Counts, and what a chat template did with the data, in sentences."""

from collections.abc import Mapping
from typing import Any

from eaft_probe.text import printable


def counted_noun(count: int, noun: str) -> str:
    """
    >>> counted_noun(1, "token"), counted_noun(2000, "token")
    ('1 token', '2,000 tokens')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def template_notices(summary: Mapping[str, Any]) -> list[str]:
    """Of a scan's summary; none if the template shows everything and ends every turn."""
    notices = list[str]()
    if summary.get("left_out"):
        notices.append(f"The chat template does not show {left_out(summary['left_out'])}.")
    if count := summary.get("not_shown"):
        notices.append(
            f"Turns that are not trained because the chat template does not show them: {count:,}."
        )
    if count := summary.get("closed"):
        notices.append(
            "Last turns that the chat template leaves open and that were ended here as it ends "
            f"earlier ones: {count:,}."
        )
    return notices


def left_out(characters: Mapping[str, int]) -> str:
    """Role and field with the characters of text that are not shown."""
    return ", ".join(
        f"{counted_noun(n, 'character')} of {printable(field)}" for field, n in characters.items()
    )
