"""The gradient with which per-token values come back from a reduction, known before the values are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_opd.functional.off_policy import OffPolicyWeight
from lightning_opd.functional.policy_losses import PolicyLoss
from lightning_opd.functional.reductions import Reduction
from lightning_opd.interfaces import StudentForward
from lightning_opd.types import RolloutBatch


def forecast(
    reduction: Reduction,
    factors: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    batch: RolloutBatch,
) -> Float[Tensor, "batch time"] | None:
    """Return the derivative of the reduced loss in each token's value, exact where the reduction is linear.

    Args:
        reduction: Adds the tokens' losses up.
        factors: Loss of a token per value of it.
        mask: Tokens whose value is a loss at all.
        batch: The micro-batch.

    Returns:
        None where no gradient is asked for.
    """
    if not torch.is_grad_enabled():
        return None
    values = torch.zeros_like(factors, requires_grad=True)
    losses = torch.where(mask, values * factors, 0.0)
    loss = reduction(losses, batch.response_mask, batch.num_active_tokens, batch.num_trajectories)
    return torch.autograd.grad(loss, values)[0] if loss.requires_grad else None


def foresee_policy_loss(
    student: StudentForward,
    batch: RolloutBatch,
    advantages: Callable[[Tensor], Tensor],
    policy_loss: PolicyLoss,
    off_policy: OffPolicyWeight | None,
    reduction: Reduction,
) -> None:
    """Tell the student's forward the gradient of a policy loss in each log-prob; nothing without a graph.

    Args:
        student: Whose log-probs nobody has looked at yet.
        batch: The micro-batch.
        advantages: From log-probs `[batch, time]` to advantages, that of a token from its own log-prob only.
        policy_loss: Turns advantages into losses.
        off_policy: Weighs the tokens, or None.
        reduction: Adds the losses up.
    """

    @torch.enable_grad()
    def weights(logprobs: Tensor) -> Tensor:
        old = logprobs if batch.old_logprobs is None else batch.old_logprobs
        leaf = logprobs.clone().requires_grad_()
        losses = policy_loss(leaf, old, advantages(logprobs))
        if off_policy is not None:
            losses = losses * off_policy(old, batch.rollout_logprobs)
        loss = reduction(losses, batch.response_mask, batch.num_active_tokens, batch.num_trajectories)
        return torch.autograd.grad(loss, leaf)[0] if loss.requires_grad else torch.zeros_like(leaf)

    if torch.is_grad_enabled():
        student.foresee(weights)
