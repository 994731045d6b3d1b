"""The tables of `tests/real/README.md`: `python -m tests.real.report` writes them anew."""

from __future__ import annotations

import importlib
from pathlib import Path

README = Path(__file__).parent / "README.md"
TABLES = ("templates", "tokenizers", "architectures")
"""Modules beside this one; the function `markdown` of each returns its table."""


def written(table: str, readme: str) -> str:
    """Return the table between its marks in the README."""
    return _parts(table, readme)[1].strip()


def _parts(table: str, readme: str) -> tuple[str, str, str]:
    start, end = f"<!-- {table} -->\n", f"<!-- /{table} -->"
    if start not in readme or end not in readme:
        msg = f"tests/real/README.md has no marks `<!-- {table} -->` and `<!-- /{table} -->`."
        raise ValueError(msg)
    before, _, rest = readme.partition(start)
    inside, _, after = rest.partition(end)
    return before + start, inside, end + after


def main() -> None:
    """Write all tables into the README."""
    readme = README.read_text(encoding="utf-8")
    for table in TABLES:
        before, _, after = _parts(table, readme)
        made = str(importlib.import_module(f"tests.real.{table}").markdown())
        readme = f"{before}\n{made}\n\n{after}"
    README.write_text(readme, encoding="utf-8")


if __name__ == "__main__":
    main()
