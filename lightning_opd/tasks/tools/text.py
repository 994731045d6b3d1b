"""Tools that put a short text in another order."""

from __future__ import annotations

MAX_CHARACTERS = 1000


def sort_text(text: str) -> str:
    """Sort the words of a text.

    Args:
        text: Words with spaces between them.
    """
    return " ".join(sorted(_words(text)))


def reverse_text(text: str) -> str:
    """Turn the order of a text's words round.

    Args:
        text: Words with spaces between them.
    """
    return " ".join(reversed(_words(text)))


def _words(text: str) -> list[str]:
    if len(text) > MAX_CHARACTERS:
        msg = f"the text is longer than {MAX_CHARACTERS} characters"
        raise ValueError(msg)
    return text.split()
