"""Collects the seeds of recipes/merge_adapters into its results.json, and writes its README's table."""

from __future__ import annotations

import sys

from tests.benchmarks.evidence import RECIPES
from tests.benchmarks.merge_tiny import collect

RECIPE = RECIPES / "merge_adapters"
VARIANTS = {"distribution_matching": "parity"}
COMMAND = (
    "for seed in {0}; do python -m lightning_opd run recipes/merge_adapters --seed $seed; done; "
    "python -m tests.benchmarks.merge_adapters {0}"
)

if __name__ == "__main__":
    collect(RECIPE, COMMAND, VARIANTS, sys.argv[1:])
