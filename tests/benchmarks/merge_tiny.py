"""Collects the seeds of recipes/merge_tiny into its results.json, and writes its README's tables."""

from __future__ import annotations

import datetime
import os
import sys
from pathlib import Path

from tests.benchmarks.tables import commit, parity_table, pooled, reports, write

NAME = "merge_tiny"
RUNS = Path(os.environ.get("RUNS", "runs"))
VARIANTS = {"distribution_matching": "parity", "policy_gradient": "parity_policy_gradient", "lora": "parity_lora"}
COMMAND = "bash tests/benchmarks/merge_tiny.sh {0} && python -m tests.benchmarks.merge_tiny {0}"
OTHERS = ("base", "average", "task_arithmetic")


def tables(results: dict) -> dict[str, str]:
    """Return each variant's Markdown table."""
    return {variant: parity_table(rows, OTHERS) for variant, rows in results["variants"].items()}


def main(seeds: list[int]) -> None:
    """Collect, write `results.json`, and put the tables into the README."""
    found = {variant: reports(RUNS, NAME, seeds, folder) for variant, folder in VARIANTS.items()}
    results = {
        "command": COMMAND.format(" ".join(map(str, seeds))),
        "commit": commit(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "seeds": seeds,
        "experts": [report.get("experts") for report in found["distribution_matching"]],
        "variants": {name: pooled(parts, ("student", "teacher", *OTHERS)) for name, parts in found.items()},
    }
    write(NAME, results, tables(results))


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]])
