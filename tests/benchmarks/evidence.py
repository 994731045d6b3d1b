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


def with_variant(text: str, run: Path, variant: str) -> str:
    """Return a configuration of a recipe, with the outputs of a variant beside those of its merge in a run's folder."""
    for step, own in (("merge", variant), ("test_merge", f"test_{variant}"), ("parity", f"parity_{variant}")):
        text = re.sub(rf"\$\{{run\}}/{step}\b", f"{run}/{own}", text)
    return text.replace("${run}", str(run))


def with_table(text: str, name: str, table: str) -> str:
    """Return a README with a table between its markers `<!-- table:NAME -->` and `<!-- end -->`."""
    pattern = rf"(<!-- table:{name} -->\n).*?(\n<!-- end -->)"
    text, found = re.subn(pattern, lambda match: match[1] + table + match[2], text, flags=re.DOTALL)
    assert found == 1, f"README.md has no markers for the table of {name}"
    return text


def write(recipe: Path, results: dict[str, object], readme: str, name: str = "results") -> None:
    """Write `NAME.json`, a list of numbers on one line, and the README."""
    text = json.dumps(results, indent=1)
    text = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text)
    (recipe / f"{name}.json").write_text(text + "\n")
    (recipe / "README.md").write_text(readme)
