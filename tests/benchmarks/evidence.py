"""Shared by the recipes' evidence: its provenance, and its way into the README."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"
RUNS = Path(os.environ.get("RUNS", "runs"))


def provenance(command: str, seeds: Sequence[str]) -> dict[str, object]:
    """Return the command that makes the results, the commit and day they are made at, and the seeds."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "command": command.format(" ".join(seeds)),
        "commit": commit,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "seeds": [int(seed) for seed in seeds],
    }


def with_table(text: str, name: str, table: str) -> str:
    """Return a README with a table between its markers `<!-- table:NAME -->` and `<!-- end -->`."""
    pattern = rf"(<!-- table:{name} -->\n).*?(\n<!-- end -->)"
    text, found = re.subn(pattern, lambda match: match[1] + table + match[2], text, flags=re.DOTALL)
    assert found == 1, f"README.md has no markers for the table of {name}"
    return text


def write(recipe: Path, results: dict[str, object], readme: str) -> None:
    """Write `results.json`, a list of numbers on one line, and the README."""
    text = json.dumps(results, indent=1)
    text = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text)
    (recipe / "results.json").write_text(text + "\n")
    (recipe / "README.md").write_text(readme)
