"""A parity report on the console: fitted to a terminal, the Markdown of the file elsewhere."""

from __future__ import annotations

import sys
import textwrap


def show_report(text: str) -> None:
    """Show a report on the standard output.

    Args:
        text: In Markdown.
    """
    from rich.console import Console

    console = Console(file=sys.stdout)
    sys.stdout.write(_fitted(text, console.width) if console.is_terminal else text)


def _fitted(text: str, width: int) -> str:
    """Return the same in lines that fit; a table that is too wide becomes a list of its rows."""
    parts: list[str] = []
    for part in text.strip().split("\n\n"):
        if max(map(len, part.splitlines())) <= width:
            parts.append(part)
        elif part.startswith("| "):
            names, _, *rows = (line[2:-2].split(" | ") for line in part.splitlines())
            indent = max(map(len, names)) + 2
            parts += ["\n".join(_entry(*pair, indent, width) for pair in zip(names, row, strict=True)) for row in rows]
        else:
            parts.append(textwrap.fill(part, width))
    return "\n\n".join(parts) + "\n"


def _entry(name: str, cell: str, indent: int, width: int) -> str:
    return textwrap.fill(f"{name:<{indent}}{cell}", width, subsequent_indent=" " * min(indent, width // 2))
