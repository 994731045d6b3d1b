"""How the variance of every estimator's gradient grows with the horizon, on a Markov student near its teacher."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from markov import ESTIMATORS, MarkovToy, slope


def main(
    seed: int,
    output: str,
    horizons: Sequence[int] = (32, 64, 128),
    num_rollouts: int = 4000,
    num_toys: int = 5,
) -> None:
    """Measure variances over several random pairs of student and teacher.

    Args:
        seed: Of the pairs and their walks.
        output: Folder for `slopes.json`.
        horizons: Lengths of the walks in tokens.
        num_rollouts: Walks per length.
        num_toys: Pairs of student and teacher.
    """
    generator = torch.Generator().manual_seed(seed)
    variances: dict[str, list[list[float]]] = {name: [] for name in ESTIMATORS}
    for _ in range(num_toys):
        toy = MarkovToy.draw(generator)
        rollouts = [toy.sample(num_rollouts, horizon, generator) for horizon in horizons]
        for name, (estimator, has_values) in ESTIMATORS.items():
            variances[name].append([toy.gradient_variance(r, estimator, has_values) for r in rollouts])
    result = {
        "horizons": list(horizons),
        "rollouts": num_rollouts,
        "variances": variances,
        "slopes": {name: [slope(horizons, own) for own in rows] for name, rows in variances.items()},
    }
    Path(output).mkdir(parents=True, exist_ok=True)
    (Path(output) / "slopes.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
