"""An engine that is not the trainer's own forward, on the whole training step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lightning_opd.callbacks import OutcomeReward
from lightning_opd.functional.off_policy import TruncatedImportance
from lightning_opd.functional.policy_losses import PPOClip
from lightning_opd.interfaces import Objective, OnProgress, RolloutEngine
from lightning_opd.objectives import DistributionMatching, OutcomeGradient, PolicyGradient
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.types import Sample, Sampling
from tests.replay import fit
from tests.world import largest_difference, make_module

OFFSET = 0.25
"""Nats by which the engine understates every log-prob."""


class Approximate(RolloutEngine):
    """Writes with a copy of the weights as they were at `sync`, and reports log-probs that are a little off."""

    def __init__(self) -> None:
        self.inner = InProcessEngine()
        self.events: list[tuple[str, int]] = []
        self.weights: list[torch.Tensor] = []
        self.samples: list[list[Sample]] = []

    def sync(self, student: torch.nn.Module, version: int) -> None:
        self.inner.sync(student, version)
        self.events.append(("sync", version))
        self.weights.append(next(student.parameters()).detach().clone())

    def generate(
        self,
        token_ids: Sequence[Sequence[int]],
        num_samples: int,
        seeds: Sequence[int],
        sampling: Sampling = Sampling(),
        on_progress: OnProgress | None = None,
    ) -> list[Sample]:
        self.events.append(("generate", len(seeds)))
        exact = self.inner.generate(token_ids, num_samples, seeds, sampling, on_progress)
        samples = [dataclasses.replace(s, logprobs=tuple(x - OFFSET for x in s.logprobs)) for s in exact]
        self.samples.append(samples)
        return samples

    def close(self) -> None:
        self.events.append(("close", 0))


@pytest.mark.parametrize(
    "objective",
    [PolicyGradient(), PolicyGradient(policy_loss=PPOClip()), OutcomeGradient(), DistributionMatching()],
    ids=lambda o: type(o).__name__,
)
def test_an_engine_that_is_not_exact_is_refused_where_log_probs_must_be(
    objective: Objective, world: Path, tmp_path: Path
) -> None:
    engine = Approximate()
    assert not engine.is_exact
    with pytest.raises(ValueError, match="whole distribution"):
        fit(tmp_path, make_module(world, objective), OutcomeReward(), data={"engine": engine})
    assert all(event != "generate" for event, _ in engine.events)


@pytest.mark.parametrize("objective", [OutcomeGradient, DistributionMatching], ids=lambda o: o.__name__)
def test_outcomes_are_weighted_by_the_engines_log_probs(
    objective: type[OutcomeGradient], double_world: Path, tmp_path: Path
) -> None:
    """The engine understates every log-prob by as much: the outcome's gradient is larger by one known factor."""
    data = {"engine": Approximate()}
    module = make_module(double_world, objective(off_policy=TruncatedImportance()), "float64")
    recorder = fit(tmp_path, module, OutcomeReward(), data=data)
    assert recorder.logged[0]["train/engine_gap"] == pytest.approx(OFFSET, abs=1e-6)
    assert recorder.logged[0]["train/off_policy_weight"] == pytest.approx(math.exp(OFFSET), abs=1e-6)
    exact = fit(tmp_path, make_module(double_world, objective(), "float64"), OutcomeReward())
    assert torch.equal(exact.rollout_batches[0].token_ids, recorder.rollout_batches[0].token_ids)
    if objective is OutcomeGradient:
        scaled = {name: math.exp(OFFSET) * g for name, g in exact.gradients[0].items()}
        assert largest_difference(recorder.gradients[0], scaled) < 1e-6
    assert largest_difference(recorder.gradients[0], exact.gradients[0]) > 1e-4


def test_what_is_matched_at_visited_states_takes_any_engine(world: Path, tmp_path: Path) -> None:
    recorder = fit(tmp_path, make_module(world, DistributionMatching()), data={"engine": Approximate()})
    assert len(recorder.rollout_batches) == 1


@pytest.mark.parametrize("updates", [1, 2])
def test_the_engine_gets_the_weights_of_every_version_before_it_writes(
    updates: int, world: Path, tmp_path: Path
) -> None:
    engine = Approximate()
    objective = PolicyGradient(policy_loss=PPOClip(), off_policy=TruncatedImportance())
    data = {"engine": engine, "updates_per_batch": updates}
    fit(tmp_path, make_module(world, objective), data=data, max_steps=3 * updates, accumulate_grad_batches=2)
    written = [pair for i in range(3) for pair in (("sync", updates * i), ("generate", 8))]
    assert engine.events == [*written, ("close", 0)]
    assert not torch.equal(engine.weights[0], engine.weights[1])
    assert not torch.equal(engine.weights[1], engine.weights[2])


def test_the_engines_log_probs_weigh_its_tokens(double_world: Path, tmp_path: Path) -> None:
    engine = Approximate()
    objective = PolicyGradient(off_policy=TruncatedImportance())
    recorder = fit(tmp_path, make_module(double_world, objective, "float64"), data={"engine": engine})
    rollouts = recorder.rollout_batches[0]
    for row, sample in enumerate(engine.samples[0]):
        mask = rollouts.response_mask[row]
        assert rollouts.token_ids[row][mask].tolist() == list(sample.token_ids)
        assert rollouts.rollout_logprobs[row][mask].tolist() == list(sample.logprobs)
        assert bool(rollouts.is_truncated[row]) == sample.is_truncated
    assert recorder.logged[0]["train/engine_gap"] == pytest.approx(OFFSET, abs=1e-6)
    assert recorder.logged[0]["train/off_policy_weight"] == pytest.approx(math.exp(OFFSET), abs=1e-6)
