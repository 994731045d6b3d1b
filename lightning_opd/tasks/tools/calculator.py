"""A calculator of bounded cost: numbers and operators, nothing else."""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping

MAX_CHARACTERS, MAX_NODES = 200, 64
MAX_DIGITS, MAX_EXPONENT = 100, 1000
MAX_EXACT = 2**53
"""Whole numbers below it are shown without a decimal point."""

_BINARY: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def calculate(expression: str) -> str:
    """Work out an arithmetic expression.

    Args:
        expression: Numbers, + - * / // % ** and parentheses, for example (2 + 3) * 4.
    """
    if len(expression) > MAX_CHARACTERS:
        msg = f"the expression is longer than {MAX_CHARACTERS} characters"
        raise ValueError(msg)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's warnings about the style of arbitrary text
            tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        msg = "this is not an arithmetic expression"
        raise ValueError(msg) from None
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        msg = "the expression is too long"
        raise ValueError(msg)
    value = _value(tree)
    return str(int(value)) if value == int(value) and abs(value) < MAX_EXACT else str(value)


def _value(node: ast.expr) -> float:
    """Return the value of a number or of an operation on values, each within bounds."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)  # type: ignore[arg-type]  # just checked
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _BINARY:
            return _bounded(_BINARY[type(node.op)](left, right))
    msg = "only numbers, + - * / // % ** and parentheses are allowed"
    raise ValueError(msg)


def _power(base: float, exponent: float) -> float:
    """Raise to a power after a check of the result's size."""
    num_digits = len(str(base)) * abs(exponent) if isinstance(base, int) else 0
    if abs(exponent) > MAX_EXPONENT or num_digits > MAX_DIGITS * 10:
        msg = f"the power is too large: at most {MAX_EXPONENT} in the exponent and {MAX_DIGITS} digits in the result"
        raise ValueError(msg)
    try:
        value = base**exponent
    except OverflowError:
        value = math.inf
    if isinstance(value, complex):
        msg = "the root of a negative number is not real"
        raise ValueError(msg)  # a wrong value, not a wrong type
    return _bounded(value)


def _bounded(value: float) -> float:
    if isinstance(value, int):
        if abs(value) >= 10**MAX_DIGITS:
            msg = f"the number has more than {MAX_DIGITS} digits"
            raise ValueError(msg)
    elif not math.isfinite(value):
        msg = "the result is not a finite number"
        raise ValueError(msg)
    return value
