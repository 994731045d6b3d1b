"""Distribution matching: the student's whole next-token distribution against the teacher's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.functional.divergences import Divergence, ReverseKL, linear_divergence
from lightning_opd.functional.logprobs import MAX_CHUNK_ELEMENTS
from lightning_opd.functional.policy_losses import Reinforce
from lightning_opd.functional.reductions import Reduction, TokenMean
from lightning_opd.interfaces import Objective, StudentForward
from lightning_opd.objectives.metrics import mean_over, per_teacher
from lightning_opd.types import LinearHead, LossTerms, RolloutBatch, Signal


@dataclass(frozen=True)
class DistributionMatching(Objective):
    """Match distributions at every token the student visits: Σ_t D(π(·|s_t), T(·|s_t)).

    With the reverse KL this is what the immediate policy gradient estimates, at a fraction of its
    variance: the better choice wherever the teacher's output head is at hand (local teachers).
    The state distribution is held fixed, as in the immediate estimator. Logits exist only one
    chunk at a time.

    Args:
        divergence: Compares the two distributions.
        reduction: Adds the tokens up.
    """

    divergence: Divergence = ReverseKL()
    reduction: Reduction = TokenMean()

    @property
    @override
    def requires(self) -> frozenset[Signal]:
        return frozenset({Signal.HIDDEN_STATES})

    @override
    def advantages(self, batch: RolloutBatch, student: StudentForward) -> Float[Tensor, "batch time"]:
        return torch.where(batch.response_mask, batch.outcome_advantages[:, None], 0.0)

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
        mask = batch.response_mask & batch.comparable_mask
        divergences = self._divergences(batch, student, heads)
        distilled = torch.where(mask & batch.distill_mask, divergences * batch.distill_weights[:, None], 0.0)
        losses = distilled
        if bool(advantages.any()):
            losses = losses + Reinforce()(student.logprobs, student.logprobs.detach(), advantages)
        loss = self.reduction(losses, batch.response_mask, batch.num_active_tokens, batch.num_trajectories)
        return LossTerms(
            loss,
            {
                **per_teacher("teacher_kl", divergences, mask, batch),
                "advantage": mean_over(advantages, batch.response_mask),
            },
        )

    def _divergences(
        self, batch: RolloutBatch, student: StudentForward, heads: Sequence[LinearHead | None]
    ) -> Float[Tensor, "batch time"]:
        if batch.teacher_scores is None or batch.teacher_scores.hidden_states is None:
            msg = (
                "DistributionMatching needs the teachers' hidden states, got log-probs only. "
                "Use local teachers, or the objective `PolicyGradient`."
            )
            raise ValueError(msg)
        mask = batch.response_mask & batch.comparable_mask
        total = student.hidden_states.new_zeros(())
        for index, head in enumerate(heads):
            if head is None:
                msg = f"Teacher `{batch.teacher_names[index]}` has no output head; use the objective `PolicyGradient`."
                raise ValueError(msg)
            # one vocabulary for both sides, cut before any softmax
            vocab_size = min(head.vocab_size, student.head.vocab_size)
            width = batch.teacher_scores.hidden_states.shape[-1] if head.weight is None else head.weight.shape[1]
            total = total + linear_divergence(
                self.divergence,
                student.hidden_states,
                dataclasses.replace(student.head, vocab_size=vocab_size).logits,
                batch.teacher_scores.hidden_states[..., :width],
                dataclasses.replace(head, vocab_size=vocab_size).logits,
                mask & (batch.teacher_ids == index)[:, None],
                batch.temperature,
                head.temperature or batch.temperature,
                chunk_size=max(1, MAX_CHUNK_ELEMENTS // vocab_size),
            )
        return total
