"""Quantities as a person writes them: counts, numbers, shares, times and sizes."""

import math

MINUTE, HOUR, DAY = 60, 3600, 86_400  # seconds
PLACES = 3  # decimals of a column of numbers
UNITS = ((DAY, "days"), (HOUR, "h"), (MINUTE, "min"))


def counted_noun(count: int, noun: str) -> str:
    """The count with its noun, in the plural unless it is 1.

    >>> counted_noun(1, "token"), counted_noun(2000, "token")
    ('1 token', '2,000 tokens')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def number(value: float | None, digits: int = 3, sign: str = "") -> str:
    """So many significant digits; what is below 0.0001 with its power of ten.

    >>> number(0.50927), number(-2.2e-7, 2), number(12345.6), number(999.7), number(float("nan"))
    ('0.509', '-2.2e-7', '12,346', '1,000', '–')
    >>> number(0.25, sign="+"), number(-0.0, sign="+")
    ('+0.25', '0')
    """
    if not value:
        return "–" if value is None else "0"
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if round(abs(value)) >= 10**digits:
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.{digits}g}".replace("e-0", "e-")


def decimals(value: float | None, sign: str = "") -> str:
    """PLACES decimals, so that a column of numbers lines up; more where those are all 0.

    >>> decimals(1.5), decimals(0.00042, sign="+"), decimals(0), decimals(None)
    ('1.500', '+0.00042', '0', '–')
    """
    if not value or not math.isfinite(value) or abs(value) < 0.5 * 10**-PLACES:
        return number(value, 2, sign)
    return f"{value:{sign}.{PLACES}f}"


def probability(p: float) -> str:
    """Two digits; 1 only for a certain token.

    >>> probability(2.34e-5), probability(0.4251), probability(0.99974), probability(0.9999999)
    ('2.3e-5', '0.43', '0.9997', '>0.9999')
    """
    if 0.9999 < p < 1:
        return ">0.9999"
    return number(p, 4 if p > 0.99 else 2)


def percent(share: float | None, sign: str = "", digits: int = 0) -> str:
    """Two decimals; in figures, which have less room, so many significant `digits`.

    >>> percent(0.0464), percent(0.0), percent(1.0), percent(0.00002), percent(-0.5, "+")
    ('4.64 %', '0 %', '100 %', '<0.01 %', '-50.00 %')
    >>> percent(0.0169, digits=2), percent(0.999, digits=2), percent(-12.3, digits=2)
    ('1.7 %', '100 %', '-1,230 %')
    >>> percent(0.99996)
    '>99.99 %'
    """
    if share is None or math.isnan(share):
        return "–"
    if 0 < abs(share) < 0.5e-4:
        return "<0.01 %" if share > 0 else ">-0.01 %"
    if not digits and 0.99995 <= share < 1:
        return ">99.99 %"
    if digits or share in (0, 1):
        return f"{number(100 * share, digits or 3, sign)} %"
    return f"{100 * share:{sign}.2f} %"


def duration(seconds: float) -> str:
    """
    >>> duration(0.024), duration(90), duration(9000), duration(1e6)
    ('0.024 s', '1.5 min', '2.5 h', '11.6 days')
    """
    for size, unit in UNITS:
        if seconds >= (2 * size if size == DAY else size):
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds, 2)} s"


def bytes_text(size: float) -> str:
    """
    >>> bytes_text(477), bytes_text(30_500), bytes_text(2.5e9)
    ('477 bytes', '30.5 kB', '2.5 GB')
    """
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if size >= 10**power:
            return f"{number(size / 10**power)} {unit}"
    return counted_noun(round(size), "byte")
