"""Trains every arm at its own best learning rate, over several seeds of order and noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arms import TRAINED, callbacks_of, make_data, make_module
from training import Comparison, Ingredients, Ledger


def main(
    seed: int,
    models: str,
    output: str,
    lrs: Sequence[float] = (1e-4, 3e-4, 1e-3),
    steps_to_choose: int = 32,
    steps: int = 80,
    num_seeds: int = 3,
    prompts_per_batch: int = 16,
    num_validation: int = 128,
) -> None:
    """Choose each arm's learning rate on the first seed's validation, then train it with every seed.

    `convergence.json` grows run by run; what it holds already is not trained again.

    Args:
        seed: Names the seeds: `num_seeds` from `seed` · `num_seeds` on.
        models: Folder of merge_tiny's outputs.
        output: Folder for `convergence.json`.
        lrs: Learning rates to choose from, the same for every arm.
        steps_to_choose: Steps after which the choice is made.
        steps: Steps of each training.
        num_seeds: Seeds of prompt order and noise.
        prompts_per_batch: Prompts of a rollout batch, two siblings each.
        num_validation: Validation prompts per domain.
    """

    def make(name: str, lr: float, num_steps: int, own_seed: int) -> Ingredients:
        arm = TRAINED[name]
        data = make_data(arm, own_seed, prompts_per_batch, num_validation)
        return make_module(models, arm, lr, num_steps), data, callbacks_of(arm)

    comparison = Comparison(make, list(TRAINED), lrs, steps_to_choose, steps)
    seeds = range(seed * num_seeds, (seed + 1) * num_seeds)
    comparison.run(Ledger(Path(output) / "convergence.json"), seeds)
