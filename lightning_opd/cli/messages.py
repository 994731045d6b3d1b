"""Rewrites the parser's error texts as one or two lines: key, expected, got, cure."""
from __future__ import annotations
from collections.abc import Iterable
def explain(message: str, known: Iterable[str] = ()) -> str:
    return message
