"""Collects a run of recipes/estimators into its results.json, and writes its README's tables and picture."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from typing import Any

from recipes.estimators.tables import tables
from tests.benchmarks.evidence import RECIPES, RUNS, provenance, with_table, write

RECIPE = RECIPES / "estimators"
STEPS = ("noise", "slopes", "convergence", "long_horizon")
COMMAND = "python -m lightning_opd run recipes/estimators --seed {0} && python -m tests.benchmarks.estimators {0}"


def with_tables(text: str, results: dict[str, Any]) -> str:
    """Return the README with each table between its markers."""
    for name, table in tables(results).items():
        text = with_table(text, name, table)
    return text


def main(seed: str, made_by: str = "The command alone.") -> None:
    """Collect and write.

    Args:
        seed: Of the run.
        made_by: What was done where the command does not say it.
    """
    run = RUNS / "estimators" / f"seed{seed}"
    results = {
        **provenance(COMMAND, [seed]),
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()}), one thread",
        "made_by": made_by,
        **{step: json.loads((run / step / f"{step}.json").read_text(encoding="utf-8")) for step in STEPS},
    }
    write(RECIPE, results, with_tables((RECIPE / "README.md").read_text(encoding="utf-8"), results))
    shutil.copyfile(run / "report" / "estimators.png", RECIPE / "estimators.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
