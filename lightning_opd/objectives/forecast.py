"""The gradient with which per-token values come back from a reduction, known before the values are."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_opd.functional.reductions import Reduction
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
