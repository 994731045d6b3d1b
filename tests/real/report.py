"""The tables of `tests/real/README.md`: `python -m tests.real.report` writes them anew."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

README = Path(__file__).parent / "README.md"
TABLES = ("templates", "tokenizers", "architectures")
"""Modules beside this one; the function `markdown` of each returns its table."""


def written(table: str, readme: str) -> str:
    """Return the table between its marks in the README."""
    found = re.search(f"<!-- {table} -->\n(.*?)\n<!-- /{table} -->", readme, re.DOTALL)
    if found is None:
        msg = f"tests/real/README.md has no marks `<!-- {table} -->` and `<!-- /{table} -->`."
        raise ValueError(msg)
    return found[1]


def main() -> None:
    """Write all tables into the README."""
    readme = README.read_text(encoding="utf-8")
    for table in TABLES:
        made = str(importlib.import_module(f"tests.real.{table}").markdown())
        readme = readme.replace(written(table, readme), made)
    README.write_text(readme, encoding="utf-8")


if __name__ == "__main__":
    main()
