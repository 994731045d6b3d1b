"""Likelihood of given responses: supervised learning on the same road, as a control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.functional.reductions import Reduction, TokenMean
from lightning_opd.interfaces import Objective, StudentForward, WindowContext, WindowForward
from lightning_opd.objectives.metrics import mean_over
from lightning_opd.types import LinearHead, LossTerms, Road, RolloutBatch, Signal


@dataclass(frozen=True)
class Likelihood(Objective):
    """Maximise Σ_t log π(a_t|s_t) of responses written by the teacher or a data set.

    The off-policy control: with `given_responses: TeacherResponses` and a share of 1 it is
    supervised training on teacher samples (sequence-level distillation). Not for the student's own
    responses, where its expected gradient is zero.

    Args:
        reduction: Adds the tokens up.

    Reference:
        Kim and Rush, Sequence-level knowledge distillation (2016), equation (5).
    """

    reduction: Reduction = TokenMean()

    @property
    @override
    def requires(self) -> frozenset[Signal]:
        return frozenset()

    @override
    def check(self, road: Road) -> None:
        super().check(road)
        if road.given_share < 1 or road.has_outcome:
            msg = (
                f"Likelihood learns from given responses only, got a share of {road.given_share:g} of the windows"
                f"{' and outcome rewards' if road.has_outcome else ''}. Set `data.given_responses` with `share: 1` and "
                "no `OutcomeReward`, or use another objective."
            )
            raise ValueError(msg)

    @override
    def prepare(self, window: RolloutBatch, over_window: WindowForward, context: WindowContext) -> None:
        pass  # nothing is held against the student as it was

    @override
    def advantages(self, batch: RolloutBatch, student: StudentForward) -> Float[Tensor, "batch time"]:
        return torch.where(batch.response_mask, 1.0, torch.zeros_like(batch.rollout_logprobs))

    @override
    def loss(
        self,
        batch: RolloutBatch,
        student: StudentForward,
        advantages: Float[Tensor, "batch time"] | None = None,
        heads: Sequence[LinearHead | None] = (),
    ) -> LossTerms:
        mask = batch.response_mask
        losses = torch.where(mask & batch.distill_mask, -student.logprobs * batch.distill_weights[:, None], 0.0)
        loss = self.reduction(losses, mask, batch.num_active_tokens, batch.num_trajectories)
        return LossTerms(
            loss, {"nll": mean_over(-student.logprobs, mask), "entropy": mean_over(student.entropies, mask)}
        )
