"""A policy gradient on the outcome reward, beside the distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import lightning as L  # Lightning's own convention
import torch
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.outcomes import RLOO, OutcomeAdvantage
from lightning_opd.interfaces import OPDCallback, RewardFunction, finite_reward
from lightning_opd.types import RolloutBatch, Signal, Trajectory


@dataclass(frozen=True)
class TaskReward(RewardFunction):
    """The task's own reward."""

    @override
    def __call__(self, trajectory: Trajectory) -> float:
        return trajectory.reward


@dataclass(frozen=True)
class WellFormed(RewardFunction):
    """1 if no turn breaks a format rule."""

    @override
    def __call__(self, trajectory: Trajectory) -> float:
        return float(not trajectory.format_errors)


@dataclass(frozen=True)
class WeightedReward:
    """One term of a reward.

    Args:
        function: Rewards a trajectory.
        weight: Weight of this term in the sum; a negative one turns the reward into a cost.
    """

    function: RewardFunction
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a weight that is no number."""
        if not math.isfinite(self.weight):
            msg = f"`weight` of {type(self.function).__name__} must be a finite number, got {self.weight}."
            raise ConfigError(msg)


class OutcomeReward(OPDCallback):
    """Add `coef` · Â_outcome to every response token's advantage.

    A positive coefficient moves the fixed point from the teacher towards reward (π ∝ T·exp(coef·R) with an
    exact estimator). Exact parity with the teacher needs a coefficient of 0, which `final_coef: 0` reaches
    in the course of training.

    Logs `train/outcome_advantage` (mean of its absolute value, before the coefficient), `train/outcome_coef`,
    `train/groups_without_spread` (fraction of groups whose siblings all have one reward and give no gradient) and, with
    `rewards`, `train/reward_function/<name>`.

    Args:
        coef: Weight of the outcome advantage against the log-ratio in nats.
        final_coef: Weight at the end; null keeps `coef`.
        final_from: Fraction of training from which `final_coef` applies; the change up to there is linear.
        advantage: Compares the rewards of siblings; needs `data.samples_per_prompt` of 2 or more.
        rewards: Terms that are summed up; by default the task's reward alone.

    Reference:
        Liu, Fu, Shen, Jiang, On-policy distillation in model merging (2026), section 2;
        `.github/THEORY.md`, section 9.
    """

    def __init__(
        self,
        coef: float = 1.0,
        final_coef: float | None = None,
        final_from: float = 0.8,
        advantage: OutcomeAdvantage = RLOO(),  # noqa: B008  # frozen
        rewards: list[WeightedReward] | None = None,
    ) -> None:
        """Check the weights."""
        for name, value in (("coef", coef), ("final_coef", final_coef or 0.0)):
            if value < 0:
                msg = f"`{name}` must not be negative, got {value}: it would reward failure."
                raise ConfigError(msg)
            if not math.isfinite(value):
                msg = f"`{name}` must be a finite number, got {value}."
                raise ConfigError(msg)
        if not 0 < final_from <= 1:
            msg = f"`final_from` is a fraction of training, above 0 and at most 1, got {final_from}."
            raise ConfigError(msg)
        self.coef, self.final_coef, self.final_from = coef, final_coef, final_from
        self.advantage, self.rewards = advantage, rewards or []

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.final_coef is not None and trainer.estimated_stepping_batches == float("inf"):
            msg = "`final_coef` needs the length of training; set `trainer.max_steps` or `trainer.max_epochs`."
            raise ConfigError(msg)

    @property
    @override
    def adds_outcome(self) -> bool:
        return True

    @property
    @override
    def needs_siblings(self) -> bool:
        return True

    @property
    @override
    def signals(self) -> frozenset[Signal]:
        return frozenset()

    @override
    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        rewards, metrics = self._rewards(rollouts)
        advantages, coef = self.advantage(rewards, rollouts.group_ids), self._coef(trainer)
        rollouts.outcome_advantages = rollouts.outcome_advantages + coef * advantages
        one = rollouts.num_trajectories.new_ones(())
        rollouts.metrics = {
            **rollouts.metrics,
            **metrics,
            "train/outcome_advantage": (advantages.abs().double().sum(), one * len(rollouts)),
            "train/outcome_coef": (one * coef, one),
            "train/groups_without_spread": _without_spread(rewards, rollouts.group_ids),
        }

    def _coef(self, trainer: L.Trainer) -> float:
        if self.final_coef is None:
            return self.coef
        progress = trainer.global_step / (self.final_from * trainer.estimated_stepping_batches)
        return self.coef + (self.final_coef - self.coef) * min(1.0, progress)

    def _rewards(self, rollouts: RolloutBatch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Return each trajectory's weighted sum, and the mean of each term to log."""
        if not self.rewards:
            return rollouts.rewards, {}
        total, metrics = torch.zeros_like(rollouts.rewards), {}
        for term in self.rewards:
            function = type(term.function).__name__
            found = [finite_reward(term.function(t), f"`{function}`", t.prompt.key) for t in rollouts.trajectories]
            values = rollouts.rewards.new_tensor(found)
            total = total + term.weight * values
            name = f"train/reward_function/{function}"
            metrics[name] = (values.double().sum(), values.new_tensor(len(values), dtype=torch.float64))
        return total, metrics


def _without_spread(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many groups have one reward throughout, and how many there are."""
    groups, group = torch.unique(group_ids, return_inverse=True)
    empty = rewards.new_zeros(len(groups))
    lowest = empty.scatter_reduce(0, group, rewards, "amin", include_self=False)
    highest = empty.scatter_reduce(0, group, rewards, "amax", include_self=False)
    is_flat = lowest == highest
    return is_flat.double().sum(), torch.ones_like(is_flat, dtype=torch.float64).sum()
