"""Text of the data as it may be shown: never obeyed by a terminal, a figure or a page."""

import unicodedata


def printable(text: str) -> str:
    """Without characters that would steer a terminal: controls and bidirectional marks as \\x, \\u.

    >>> printable("red\\x1b[31m\\n")
    'red\\\\x1b[31m\\n'
    """
    return "".join(c if _harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _harmless(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) not in (
        "Cc",
        "Cf",
        "Cs",
        "Zl",
        "Zp",
    )
