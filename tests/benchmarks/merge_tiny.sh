#!/usr/bin/env bash
# The three tables of recipes/merge_tiny, one seed after the other (outputs in RUNS, by default `runs`):
#   bash tests/benchmarks/merge_tiny.sh 0 1 2 && python -m tests.benchmarks.merge_tiny 0 1 2
set -euo pipefail

runs=${RUNS:-runs}
for seed in "$@"; do
  python -m lightning_opd run recipes/merge_tiny --seed "$seed" --output "$runs"
  root=$runs/merge_tiny/seed$seed
  for variant in policy_gradient lora; do
    [ -e "$root/parity_$variant/parity.json" ] && continue
    mkdir -p "$root/$variant/inputs"
    for name in merge "$variant" test parity; do
      sed -e "s#seed0/merge#seed0/$variant#; s#seed0/test_merge#seed0/test_$variant#; s#seed0/parity#seed0/parity_$variant#" \
        -e "s#runs/merge_tiny/seed0#$root#" "recipes/merge_tiny/$name.yaml" >"$root/$variant/inputs/$name.yaml"
    done
    inputs=$root/$variant/inputs
    python -m lightning_opd fit --config "$inputs/merge.yaml" --config "$inputs/$variant.yaml" --seed_everything "$seed"
    python -m lightning_opd test --config "$inputs/test.yaml" --seed_everything "$seed"
    python -m lightning_opd parity --config "$inputs/parity.yaml"
  done
done
