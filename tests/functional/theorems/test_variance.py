"""How the variance of each estimator's gradient grows with the horizon, on a Markov student near its teacher."""

from __future__ import annotations

import pytest
import torch

from lightning_opd.functional.advantages import KLToGo, LogRatioToGo
from recipes.estimators.markov import ESTIMATORS, MarkovToy, slope

HORIZONS = (32, 64, 128)


@pytest.fixture(scope="module")
def slopes() -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    toy = MarkovToy.draw(generator)
    rollouts = [toy.sample(4000, horizon, generator) for horizon in HORIZONS]
    return {
        name: slope(HORIZONS, [toy.gradient_variance(r, estimator, has_values) for r in rollouts])
        for name, (estimator, has_values) in ESTIMATORS.items()
    }


def test_the_variance_of_immediate_grows_with_the_length(slopes: dict[str, float]) -> None:
    assert 0.7 < slopes["immediate"] < 1.3


def test_the_variance_of_sums_over_the_future_grows_faster(slopes: dict[str, float]) -> None:
    assert slopes["to-go"] - slopes["immediate"] >= 1
    assert slopes["full trajectory"] - slopes["immediate"] >= 1


def test_the_exact_value_brings_kl_to_go_down_to_immediate(slopes: dict[str, float]) -> None:
    assert slopes["KL-to-go, exact value"] - slopes["immediate"] <= 0.3
    assert slopes["KL-to-go"] - slopes["immediate"] >= 1  # it is the value that does it


def test_the_values_of_the_toy_are_the_mean_log_ratio_to_go() -> None:
    generator = torch.Generator().manual_seed(0)
    rollouts = MarkovToy.draw(generator, num_states=3, distance=1.0).sample(20_000, 5, generator)
    mask = torch.ones_like(rollouts.states, dtype=torch.bool)
    for estimator in (LogRatioToGo(), KLToGo()):
        surprise = estimator(rollouts.log_ratio, mask, kl=rollouts.kl) - rollouts.values
        assert (surprise.mean(0).abs() < 5 * surprise.std(0) / 20_000**0.5).all()
