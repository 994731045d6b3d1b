"""Policy gradient on the teacher's log-ratio of the sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.functional.advantages import AdvantageEstimator, Immediate
from lightning_opd.functional.policy_losses import PolicyLoss, Reinforce
from lightning_opd.functional.reductions import Reduction, TokenMean
from lightning_opd.interfaces import Objective, StudentForward
from lightning_opd.objectives.metrics import mean_over, per_teacher
from lightning_opd.types import LinearHead, LossTerms, RolloutBatch, Signal


@dataclass(frozen=True)
class PolicyGradient(Objective):
    """Learn from the sampled tokens: −Σ Â_t log π(a_t|s_t), with Â from r_t = log T − log π.

    Needs one log-prob per token from the teacher, so any teacher will do, served ones included.
    Noisier than matching whole distributions.

    Args:
        estimator: Turns log-ratios into advantages.
        policy_loss: Turns advantages into a loss.
        reduction: Adds the tokens up.
        clip: The log-ratio is clipped to [−clip, clip] nats; under `Immediate` this keeps
            student = teacher as the only fixed point. None leaves it unclipped.
    """

    estimator: AdvantageEstimator = Immediate()
    policy_loss: PolicyLoss = Reinforce()
    reduction: Reduction = TokenMean()
    clip: float | None = 5.0

    def __post_init__(self) -> None:
        """Refuse a clip that leaves nothing."""
        if self.clip is not None and self.clip <= 0:
            msg = f"`clip` must be positive or null, got {self.clip}."
            raise ValueError(msg)

    @property
    @override
    def requires(self) -> frozenset[Signal]:
        return frozenset({Signal.LOGPROBS})

    @override
    def advantages(self, batch: RolloutBatch, student: StudentForward) -> Float[Tensor, "batch time"]:
        mask = batch.response_mask & batch.comparable_mask
        log_ratio = torch.where(mask, batch.teacher_logprobs - student.logprobs.detach(), 0.0)
        if self.clip is not None:
            log_ratio = log_ratio.clamp(-self.clip, self.clip)
        distilled = self.estimator(log_ratio, batch.response_mask, group_ids=batch.group_ids, values=batch.baselines)
        distilled = torch.where(mask & batch.distill_mask, distilled * batch.distill_weights[:, None], 0.0)
        outcome = torch.where(batch.response_mask, batch.outcome_advantages[:, None], 0.0)
        return distilled + outcome

    @override
    def loss(
        self,
        batch: RolloutBatch,
        student: StudentForward,
        advantages: Float[Tensor, "batch time"] | None = None,
        heads: Sequence[LinearHead | None] = (),
    ) -> LossTerms:
        if advantages is None:
            advantages = self.advantages(batch, student)
        logprobs, mask = student.logprobs, batch.response_mask
        old_logprobs = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        losses = self.policy_loss(logprobs, old_logprobs, advantages)
        loss = self.reduction(losses, mask, batch.num_active_tokens, batch.num_trajectories)
        log_ratio = batch.teacher_logprobs - logprobs.detach()
        compared = mask & batch.comparable_mask
        is_clipped = log_ratio.abs() > (torch.inf if self.clip is None else self.clip)
        return LossTerms(
            loss,
            {
                **per_teacher("teacher_kl", -log_ratio, compared, batch),
                "clipped": mean_over(is_clipped, compared),
                "entropy": mean_over(student.entropies, mask),
                "advantage": mean_over(advantages, mask),
            },
        )
