"""What reading the student's text in other tokens costs, as metrics."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_opd.teachers.cross_tokenizer.roles import ROLES, RoleTable
from lightning_opd.types import SampledTokens


def alignment_metrics(
    batch: SampledTokens,
    logprobs: Float[Tensor, "batch time"],
    aligned_mask: Bool[Tensor, "batch time"],
    roles: RoleTable,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return name → (sum, count) of what is lost, and of the log-ratios of control tokens.

    `kept_tokens` is the fraction of response tokens that get a score, `dropped_logprob` the fraction of Σ|log π| on
    those that do not, `role_log_ratio_<role>` the mean log-ratio (nats) of a role's scored tokens.

    Args:
        batch: What was scored.
        logprobs: What its tokens are compared with, in nats.
        aligned_mask: Which tokens are.
        roles: The student's control tokens.
    """
    mask, own = batch.response_mask, batch.rollout_logprobs.double()
    size = torch.where(mask, own.abs(), 0.0)
    dropped = torch.where(aligned_mask, 0.0, size)
    metrics = {"kept_tokens": (aligned_mask.sum(), mask.sum()), "dropped_logprob": (dropped.sum(), size.sum())}
    log_ratio = torch.where(aligned_mask, logprobs - own, 0.0)
    for role in ROLES:
        ids = [token_id for token_id, name in roles.names.items() if name == role]
        has_role = aligned_mask & torch.isin(batch.token_ids, batch.token_ids.new_tensor(ids))
        metrics[f"role_log_ratio_{role}"] = (torch.where(has_role, log_ratio, 0.0).sum(), has_role.sum())
    return metrics


def dominant_token(
    token_ids: Int[Tensor, "batch time"],
    log_ratio: Float[Tensor, "batch time"],
    aligned_mask: Bool[Tensor, "batch time"],
) -> tuple[int, Tensor] | None:
    """Return the token id with the largest fraction of Σ|log-ratio| and that fraction; None if the sum is 0."""
    weights = torch.bincount(token_ids[aligned_mask], log_ratio[aligned_mask].abs())
    if not len(weights) or weights.sum() == 0:
        return None
    return int(weights.argmax()), weights.max() / weights.sum()
