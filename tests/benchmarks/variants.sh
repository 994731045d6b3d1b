#!/usr/bin/env bash
# One seed of a recipe, then its merge again with each overlay, tested and reported (outputs in RUNS, by default `runs`):
#   bash tests/benchmarks/variants.sh RECIPE SEED OVERLAY...
set -euo pipefail

recipe=$1 seed=$2 runs=${RUNS:-runs}
shift 2
python -m lightning_opd run "recipes/$recipe" --seed "$seed" --output "$runs"
root=$runs/$recipe/seed$seed
for variant in "$@"; do
  [ -e "$root/parity_$variant/parity.json" ] && continue
  inputs=$root/$variant/inputs
  mkdir -p "$inputs"
  for name in merge "$variant" test parity; do
    sed -e "s#seed0/merge#seed0/$variant#; s#seed0/test_merge#seed0/test_$variant#; s#seed0/parity#seed0/parity_$variant#" \
      -e "s#runs/$recipe/seed0#$root#" "recipes/$recipe/$name.yaml" >"$inputs/$name.yaml"
  done
  python -m lightning_opd fit --config "$inputs/merge.yaml" --config "$inputs/$variant.yaml" --seed_everything "$seed"
  python -m lightning_opd test --config "$inputs/test.yaml" --seed_everything "$seed"
  python -m lightning_opd parity --config "$inputs/parity.yaml"
done
