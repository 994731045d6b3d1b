"""What needs a whole rollout batch, or the student as it is before any update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_opd.collection.learner import Learner
from lightning_opd.functional.length_groups import MAX_TOKENS_PER_FORWARD, budgeted_groups
from lightning_opd.interfaces import PrepareContext, StudentForward
from lightning_opd.models import evaluating, gather_objects, sum_over_ranks
from lightning_opd.types import RolloutBatch, Signal


def prepare(
    rollouts: RolloutBatch,
    learner: Learner,
    num_updates: int,
    max_tokens_per_forward: int = MAX_TOKENS_PER_FORWARD,
) -> None:
    """Store reference log-probs, baselines and old log-probs on a rollout batch, where something reads them.

    Args:
        rollouts: After the callbacks, so that their masks hold for baselines, too.
        learner: Whose objective and critic to ask.
        num_updates: Optimiser steps that the rollout batch serves.
        max_tokens_per_forward: Most tokens, padding included, of one forward of the student.
    """
    if learner.reference is not None:
        rollouts.reference_logprobs = learner.reference.score(rollouts, frozenset({Signal.LOGPROBS})).logprobs

    def over_batch(function: Callable[[RolloutBatch, StudentForward], Tensor]) -> Tensor:
        return over_rows(rollouts, learner, function, max_tokens_per_forward)

    with evaluating(learner.load_language_model().model):
        learner.objective.prepare(rollouts, PrepareContext(over_batch, num_updates, sum_over_ranks))
        value = learner.value
        if value is not None and num_updates > 1:  # with one update the training step's own values will do
            rollouts.baselines = over_batch(lambda part, student: value(student.hidden_states))


def over_rows(
    rollouts: RolloutBatch,
    learner: Learner,
    function: Callable[[RolloutBatch, StudentForward], Tensor],
    max_tokens_per_forward: int = MAX_TOKENS_PER_FORWARD,
) -> Float[Tensor, "batch time"]:
    """Return what a function makes of the student's forward over all rows, a few of like length at once.

    Args:
        rollouts: All rows of this rank; every rank must call it.
        learner: Whose student to run.
        function: From some rows and the forward over them to one number per token.
        max_tokens_per_forward: Most tokens, padding included, of one forward.
    """
    values = torch.zeros_like(rollouts.rollout_logprobs)
    groups = budgeted_groups(rollouts.attention_mask.sum(dim=1).tolist(), max_tokens_per_forward)
    num_rounds = max(gather_objects(len(groups)))  # under sharding all ranks take equally many forwards
    for group in [*groups, *[groups[-1]] * (num_rounds - len(groups))]:
        rows = torch.tensor(group, device=values.device)
        part = rollouts.select(rows)
        values[rows, rollouts.span(rows)] = function(part, learner.forward_student(part)).to(values.dtype)
    return values
