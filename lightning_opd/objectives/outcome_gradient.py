"""Outcome rewards alone: reinforcement learning without a teacher, as a control."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.off_policy import OffPolicyWeight
from lightning_opd.functional.policy_losses import PolicyLoss, Reinforce
from lightning_opd.functional.reductions import Reduction, TokenMean
from lightning_opd.interfaces import Objective, StudentForward
from lightning_opd.objectives.forecast import foresee_policy_loss
from lightning_opd.objectives.importance import check_sampling, weighted
from lightning_opd.objectives.metrics import mean_over
from lightning_opd.types import LossTerms, RolloutBatch, RunSettings, Signal


@dataclass(frozen=True)
class OutcomeGradient(Objective):
    """Learn from outcome rewards alone: −Σ_t Â_out(y) log π(a_t|s_t).

    The control without a teacher. With the callback `OutcomeReward` and its `advantage` set to
    `RLOO` it is RLOO, with `GRPO` it is GRPO (without its KL penalty).

    Args:
        policy_loss: Turns advantages into a loss.
        off_policy: Weight of tokens that another policy sampled (a nucleus, another engine); null where
            tokens come from the student's whole distribution.
        reduction: Adds the tokens up.

    Reference:
        Ahmadian et al., Back to basics: revisiting REINFORCE-style optimization for learning from human feedback
        in LLMs, arXiv 2402.14740 (2024); Shao et al., DeepSeekMath: pushing the limits of mathematical reasoning
        in open language models (GRPO), arXiv 2402.03300 (2024), section 4.1.
    """

    policy_loss: PolicyLoss = Reinforce()
    off_policy: OffPolicyWeight | None = None
    reduction: Reduction = TokenMean()

    @property
    @override
    def signals(self) -> frozenset[Signal]:
        return frozenset()

    @override
    def check(self, settings: RunSettings) -> None:
        super().check(settings)
        if not settings.has_outcome:
            msg = (
                "OutcomeGradient learns from outcome rewards, but no callback adds any. Add "
                "`lightning_opd.callbacks.OutcomeReward` to `trainer.callbacks`."
            )
            raise ConfigError(msg)
        if settings.updates_per_batch > 1 and not self.policy_loss.is_off_policy:
            msg = (
                f"`updates_per_batch` is {settings.updates_per_batch}, and {type(self.policy_loss).__name__} does not "
                "correct for stale rollouts. Use `policy_loss: PPOClip`, or one update per rollout batch."
            )
            raise ConfigError(msg)
        check_sampling(settings, self.off_policy, "the gradient of the reward")
        if settings.off_policy_fraction > 0:
            msg = (
                "OutcomeGradient learns from the student's own tokens only, but a fraction of the rollout batches is "
                "off-policy. Remove `data.off_policy_responses`."
            )
            raise ConfigError(msg)

    @override
    def advantages(self, batch: RolloutBatch, student: StudentForward) -> Float[Tensor, "batch time"]:
        return torch.where(batch.response_mask, batch.outcome_advantages[:, None], 0.0)

    @override
    def loss(
        self,
        batch: RolloutBatch,
        student: StudentForward,
        advantages: Float[Tensor, "batch time"] | None = None,
    ) -> LossTerms:
        if advantages is None:
            advantages = self.advantages(batch, student)
        known, mask = advantages, batch.response_mask
        foresee_policy_loss(student, batch, lambda _: known, self.policy_loss, self.off_policy, self.reduction)
        logprobs = student.logprobs
        losses = self.policy_loss(logprobs, student.old_logprobs, advantages)
        losses, weights = weighted(losses, self.off_policy, batch, student)
        loss = self.reduction(losses, mask, batch.num_active_tokens, batch.num_trajectories)
        metrics = {"entropy": mean_over(student.entropies, mask), "advantage": mean_over(advantages, mask)}
        return LossTerms(loss, {**metrics, **weights})
