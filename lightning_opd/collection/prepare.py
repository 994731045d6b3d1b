"""What needs a whole rollout batch, or the student as it is before any update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_opd.collection.learner import Learner
from lightning_opd.interfaces import PrepareContext, StudentForward
from lightning_opd.models import evaluating, sum_over_ranks
from lightning_opd.types import RolloutBatch, Signal

ROWS_PER_FORWARD = 64
"""Rows of a rollout batch that one forward without a graph takes at once."""


def prepare(rollouts: RolloutBatch, learner: Learner, num_updates: int) -> None:
    """Store reference log-probs, baselines and old log-probs on a rollout batch, where something reads them.

    Args:
        rollouts: After the callbacks, so that their masks hold for baselines, too.
        learner: Whose objective and critic to ask.
        num_updates: Optimiser steps that the rollout batch serves.
    """
    if learner.reference is not None:
        rollouts.reference_logprobs = learner.reference.score(rollouts, frozenset({Signal.LOGPROBS})).logprobs

    def over_batch(function: Callable[[RolloutBatch, StudentForward], Tensor]) -> Tensor:
        values = torch.zeros_like(rollouts.rollout_logprobs)
        for start in range(0, len(rollouts), ROWS_PER_FORWARD):
            rows = torch.arange(start, min(start + ROWS_PER_FORWARD, len(rollouts)), device=values.device)
            part = rollouts.select(rows)
            values[rows, rollouts.span(rows)] = function(part, learner.forward_student(part)).to(values.dtype)
        return values

    with evaluating(learner.load_language_model().model):
        learner.objective.prepare(rollouts, PrepareContext(over_batch, num_updates, sum_over_ranks))
        value = learner.value
        if value is not None and num_updates > 1:  # with one update the training step's own values will do
            rollouts.baselines = over_batch(lambda part, student: value(student.hidden_states))
