"""A tool that edits short texts."""

from __future__ import annotations

from typing import Literal

MAX_CHARACTERS = 1000


def edit_text(text: str, action: Literal["sort", "reverse", "upper", "lower", "count"]) -> str:
    """Edit a text.

    Args:
        text: What to edit.
        action: sort puts the letters or words in order, reverse turns them round, count says how many there are.
    """
    if len(text) > MAX_CHARACTERS:
        msg = f"the text is longer than {MAX_CHARACTERS} characters"
        raise ValueError(msg)
    parts, between = (text.split(), " ") if " " in text.strip() else (list(text.strip()), "")
    if action == "sort":
        return between.join(sorted(parts))
    if action == "reverse":
        return between.join(reversed(parts))
    if action == "count":
        return str(len(parts))
    return text.upper() if action == "upper" else text.lower()
