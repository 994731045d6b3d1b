from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.tasks.numbers import last_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12-4", "4"),
        ("(3)-4", "4"),
        ("is -4", "-4"),
        ("x=-3", "-3"),
        ("10 - 3", "3"),
        ("\N{MINUS SIGN}5", "-5"),
        ("-.5", "-0.5"),
        ("3,4", "4"),
        ("1,234,567.8", "1234567.8"),
        ("85.", "85"),
        ("no number", None),
        ("3/2", "3/2"),
        ("-3 / 4", "-3/4"),
        ("3 1/2", "7/2"),
        ("2e5", "200000"),
        ("1.5E-3", "3/2000"),
        ("7 000", "7000"),
        ("7\N{NARROW NO-BREAK SPACE}000\N{NARROW NO-BREAK SPACE}000.5", "7000000.5"),
        (r"7\,000", "7000"),
        (r"7{,}000", "7000"),
        (r"-\frac{7}{2}", "-7/2"),
        (r"\boxed{3\dfrac{1}{2}}", "7/2"),
        ("10^5", None),
        ("2**10", None),
        ("x^2", None),
        ("1/0", None),
        ("1/2/2024", None),
        ("1e999999999", None),
        ("9" * 5000, None),
    ],
)
def test_signs_separators_and_points(text: str, expected: str | None) -> None:
    assert last_number(text) == (None if expected is None else Fraction(expected))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_any_plain_number_is_found_with_and_without_separators(number: Decimal) -> None:
    assert last_number(f"1 and {number}") == Fraction(number)
    assert last_number(f"1 and {number:,}.") == Fraction(number)


@given(st.text())
def test_no_text_breaks_the_number_search(text: str) -> None:
    last_number(text)
