"""Text of models and prompts as a terminal or a table may show it: nothing acts, and nothing floods the screen."""

from __future__ import annotations

_ACTING = (
    *(code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"),  # escape, return, backspace
    *(0x061C, 0x200E, 0x200F),  # marks of direction
    *range(0x2028, 0x202F),  # separators of lines and paragraphs; embeddings and overrides of direction
    *range(0x2066, 0x206A),  # isolates
    *range(0xFFF9, 0xFFFC),  # annotations
    *range(0xD800, 0xE000),  # halves of a pair: no encoding has them
    *range(0xE0000, 0xE0080),  # tags, which are not seen at all
)
_WRITTEN_OUT = {code: chr(code).encode("unicode_escape").decode("ascii") for code in _ACTING}


def visible(text: str) -> str:
    r"""Return a text in which control characters are written out, as in a Python string; line feeds and tabs stay.

    A terminal would obey them: clear the screen, change its title, overwrite a line, or show the text in another
    order.

    Args:
        text: From a model, a prompt or a file.

    Example:
        >>> visible("red: \x1b[31m!\r"), visible("two\nlines")
        ('red: \\x1b[31m!\\r', 'two\nlines')
    """
    return text.translate(_WRITTEN_OUT)


def shortened(text: str, max_characters: int, max_lines: int) -> str:
    r"""Return the beginning and the end of a text that is too long, and how much is left out between them.

    Args:
        text: Of any length.
        max_characters: Of what stays.
        max_lines: Of what stays.

    Example:
        >>> shortened("abcdefghijklmnop", 8, 3)
        'abcdef\n[8 characters left out]\nop'
    """
    if len(text) <= max_characters and text.count("\n") < max_lines:
        return text
    num_last, num_last_lines = max(1, max_characters // 4), max(1, max_lines // 4)
    head = _lines(text[: max(1, max_characters - num_last)], max(1, max_lines - num_last_lines))
    tail = _lines(text[len(head) :][-num_last:][::-1], num_last_lines)[::-1]
    return f"{head}\n[{len(text) - len(head) - len(tail):,} characters left out]\n{tail}"


def _lines(text: str, max_lines: int) -> str:
    """Return the first lines of a text."""
    return "\n".join(text.split("\n", max_lines)[:max_lines])
