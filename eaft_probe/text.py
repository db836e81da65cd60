"""Text of the data as it may be shown: never obeyed by a terminal, a figure or a page."""

from unicodedata import category

STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, formats, surrogates, separators


def printable(text: str) -> str:
    """Without characters that would steer a terminal: controls and bidirectional marks as \\x, \\u.

    >>> printable("red\\x1b[31m\\n")
    'red\\\\x1b[31m\\n'
    """
    return "".join(
        c if c in "\n\t" or category(c) not in STEERING else c.encode("unicode_escape").decode()
        for c in text
    )


def in_one_line(text: str) -> str:
    """The same, with a space for any white space.

    >>> in_one_line("a\\n\\n<b>\\tc")
    'a <b> c'
    """
    return " ".join(printable(text).split())
