"""Puts measurements into a recipe: its results.json, and the tables of its README."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """Return a README with each table between its markers."""
    for name, table in tables.items():
        pattern = rf"(<!-- table:{name} -->\n).*?(\n<!-- end -->)"
        text, found = re.subn(pattern, lambda m, table=table: m[1] + table + m[2], text, flags=re.DOTALL)
        assert found == 1, f"README.md has no place for the table `{name}`"
    return text


def provenance(command: str) -> dict[str, object]:
    """Return how results came about: the command, the commit and today."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    return {"command": command, "commit": commit, "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat()}


def record(recipe: Path, results: Mapping[str, object], tables: Mapping[str, str]) -> None:
    """Write `results.json`, and put the tables into the README."""
    (recipe / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    readme = recipe / "README.md"
    readme.write_text(with_tables(readme.read_text(encoding="utf-8"), tables), encoding="utf-8")
