"""Plain numbers in a text, read whole: fractions, powers of ten and grouped digits are one number each."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

SPACES = " \N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}"
GROUPED = rf"\d{{1,3}}(?:(?P<group>[{SPACES}]|\\[,; ]|\{{,\}}|~)\d{{3}})(?:(?P=group)\d{{3}})*(?!\d)"
"""Digits in groups of three, parted by one kind of space, as text or in LaTeX."""
MAX_DIGITS, MAX_EXPONENT = 400, 400
"""Beyond these a number is not read: its exact value would take memory without bound."""

_SIGN = r"(?:(?<![\w.)])-)?"  # a minus after a digit or a bracket subtracts
_WHOLE = rf"(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|{GROUPED}|\d+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d+)?|(?<!\d)\.\d+)(?:[eE][+-]?\d+)?"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})(?:(?P<units>\d+) (?P<part>\d+/\d+)|(?P<decimal>{_DECIMAL})(?P<divisor> ?/ ?\d+(?:\.\d+)?)?)",
    re.ASCII,
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", re.ASCII)
_POWER_BEFORE = re.compile(r"(?:\^\{?|\d ?\*\* ?|/ ?)$", re.ASCII)
_POWER_AFTER = re.compile(r"\s?\^|\*\*\d", re.ASCII)


def last_number(text: str) -> Fraction | None:
    """Return the last number in a text, or None; also None where that number is only a part of a term.

    Example:
        >>> last_number("so 1,200 - 34.50 = 1,165.50.")
        Fraction(2331, 2)
        >>> [str(last_number(text)) for text in ("3/2", "2e5", "7 000", "3 1/2", "10^5", "1/2/2024")]
        ['3/2', '200000', '7000', '7/2', 'None', 'None']
    """
    text = _LATEX_FRACTION.sub(_on_a_line, text.replace("\N{MINUS SIGN}", "-"))
    found = None
    for found in _NUMBER.finditer(text):  # noqa: B007  # the last one
        pass
    if found is None or _POWER_BEFORE.search(text[: found.start()]) or _POWER_AFTER.match(text[found.end() :]):
        return None
    return _value(found)


def plain_decimal(text: str) -> str:
    """Return a number in powers of ten, such as 2e5, with all its digits; beyond the limits as it was."""
    number = Decimal(text)
    return text if abs(number.adjusted()) > MAX_EXPONENT else format(number, "f")


def _on_a_line(fraction: re.Match[str]) -> str:
    """Return a fraction of LaTeX as text; a digit before it is the whole part of a mixed number."""
    before = fraction.string[: fraction.start()][-1:]
    return f"{' ' if before.isdigit() else ''}{fraction[1]}/{fraction[2]}"


def _value(found: re.Match[str]) -> Fraction | None:
    sign = -1 if found["sign"] else 1
    if len(found[0]) > MAX_DIGITS:
        return None
    try:
        if found["units"]:
            return sign * (int(found["units"]) + Fraction(found["part"]))
        digits = re.sub(rf"[{SPACES},~]|\\[,; ]|\{{,\}}", "", found["decimal"])
        if abs(Decimal(digits).adjusted()) > MAX_EXPONENT:
            return None
        divisor = Fraction((found["divisor"] or "/1").strip(" /"))
        return sign * Fraction(digits) / divisor
    except ZeroDivisionError:
        return None
