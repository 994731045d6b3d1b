"""Copies what recipes/estimators measured into its results.json, its README's tables and its picture."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path

from recipes.estimators.tables import tables
from tests.benchmarks.record import RECIPES, provenance, record

RECIPE = RECIPES / "estimators"
RUN = Path(os.environ.get("RUNS", "runs")) / "estimators" / "seed0"
STEPS = ("noise", "slopes", "convergence", "long_horizon")
COMMAND = "python -m lightning_opd run recipes/estimators && python -m tests.benchmarks.estimators"


def main(made_by: str) -> None:
    """Collect and write.

    Args:
        made_by: What was done that `COMMAND` does not say.
    """
    results = {
        **provenance(COMMAND),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}; one thread",
        "made_by": made_by,
        **{step: json.loads((RUN / step / f"{step}.json").read_text(encoding="utf-8")) for step in STEPS},
    }
    record(RECIPE, results, tables(results))
    shutil.copyfile(RUN / "report" / "estimators.png", RECIPE / "estimators.png")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
