"""A policy gradient on the outcome, beside the distillation."""

from __future__ import annotations

import lightning as L  # Lightning's own convention
from typing_extensions import override

from lightning_opd.functional.outcomes import LeaveOneOut, OutcomeAdvantage
from lightning_opd.interfaces import OPDCallback
from lightning_opd.types import RolloutBatch


class OutcomeReward(OPDCallback):
    """Add `coef` · Â_outcome to every response token's advantage.

    A positive coefficient tilts the fixed point away from the teacher, towards reward
    (π ∝ T·exp(coef·R) in the exact case); exact parity with the teacher belongs to a coefficient of 0.

    Logs `train/outcome_advantage` (mean of its absolute value) and `train/groups_without_spread`.

    Args:
        coef: Weight of the outcome advantage against the log-ratio in nats.
        advantage: Compares the rewards of siblings; needs `data.samples_per_prompt` of 2 or more.
    """

    def __init__(self, coef: float = 1.0, advantage: OutcomeAdvantage = LeaveOneOut()) -> None:  # noqa: B008  # frozen
        """Check the weight."""
        if coef < 0:
            msg = f"`coef` must not be negative, got {coef}: it would reward failure."
            raise ValueError(msg)
        self.coef, self.advantage = coef, advantage

    @property
    @override
    def adds_outcome(self) -> bool:
        return True

    @override
    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        advantages = self.advantage(rollouts.rewards, rollouts.group_ids)
        rollouts.outcome_advantages = rollouts.outcome_advantages + self.coef * advantages
        count = rollouts.num_trajectories.new_tensor(len(rollouts))
        is_flat = advantages == 0  # every row of a group without spread
        rollouts.metrics = {
            **rollouts.metrics,
            "train/outcome_advantage": (advantages.abs().double().sum(), count),
            "train/groups_without_spread": (is_flat.double().sum(), count),
        }
