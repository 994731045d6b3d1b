#!/usr/bin/env bash
# The three tables of recipes/merge_tiny, one seed after the other (outputs in RUNS, by default `runs`):
#   bash tests/benchmarks/merge_tiny.sh 0 1 2 && python -m tests.benchmarks.merge_tiny 0 1 2
set -euo pipefail

for seed in "$@"; do
  bash tests/benchmarks/variants.sh merge_tiny "$seed" policy_gradient lora
done
