"""What a chat template did with the data, in sentences."""

from collections.abc import Mapping
from typing import Any

from eaft_probe.quantities import counted_noun
from eaft_probe.text import printable

TEMPLATE_NOTICES = {
    "not_read": "Columns of the prompt or the answer that are not read: {}.",
    "left_out": "The chat template does not show {}.",
    "not_shown": "Turns that are not trained because the chat template does not show them: {:,}.",
    "closed": "Last turns that the chat template leaves open and that were ended here as it ends "
    "earlier ones: {:,}.",
}


def template_notices(summary: Mapping[str, Any]) -> list[str]:
    """Of a scan's summary; none if the template shows everything and ends every turn."""
    shown = {
        **summary,
        "left_out": left_out(summary.get("left_out", {})),
        "not_read": not_read(summary.get("not_read", {})),
    }
    return [text.format(shown[key]) for key, text in TEMPLATE_NOTICES.items() if shown.get(key)]


def left_out(characters: Mapping[str, int]) -> str:
    """Role and field with the characters of text that are not shown."""
    return ", ".join(
        f"{counted_noun(n, 'character')} of {printable(field)}" for field, n in characters.items()
    )


def not_read(rows: Mapping[str, int]) -> str:
    """Columns with the rows that have something in them."""
    return ", ".join(
        f"{printable(column)} ({counted_noun(n, 'row')})" for column, n in rows.items()
    )
