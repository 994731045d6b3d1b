#!/usr/bin/env bash
# The three tables of recipes/merge_tiny, one seed after the other:
#   bash tests/benchmarks/merge_tiny.sh 0 1 2 && python tests/benchmarks/merge_tiny.py 0 1 2
set -euo pipefail

for seed in "$@"; do
  python -m lightning_opd run recipes/merge_tiny --seed "$seed"
  for variant in policy_gradient lora; do
    out=runs/merge_tiny/seed$seed/$variant
    [ -e "runs/merge_tiny/seed$seed/parity_$variant/parity.json" ] && continue
    mkdir -p "$out/inputs"
    for name in merge "$variant" test parity; do
      sed -e "s#seed0/merge#seed$seed/$variant#; s#seed0/test_merge#seed$seed/test_$variant#" \
        -e "s#seed0/parity#seed$seed/parity_$variant#; s#seed0#seed$seed#" \
        "recipes/merge_tiny/$name.yaml" >"$out/inputs/$name.yaml"
    done
    python -m lightning_opd fit --config "$out/inputs/merge.yaml" --config "$out/inputs/$variant.yaml" --seed_everything "$seed"
    python -m lightning_opd test --config "$out/inputs/test.yaml" --seed_everything "$seed"
    python -m lightning_opd parity --config "$out/inputs/parity.yaml"
  done
done
