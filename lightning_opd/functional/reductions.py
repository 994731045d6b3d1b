"""Reductions: from per-token losses to one number; the denominators are arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.functional.logprobs import promote


class Reduction(ABC):
    """Adds up the losses of one micro-batch so that micro-batches and ranks simply add."""

    @abstractmethod
    def __call__(
        self,
        losses: Float[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
        num_active_tokens: Float[Tensor, ""],
        num_trajectories: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Return this micro-batch's fraction of the loss.

        Args:
            losses: Loss of every token.
            mask: Tokens that count.
            num_active_tokens: Response tokens of the optimiser step over all micro-batches and ranks.
            num_trajectories: Trajectories of the optimiser step over all micro-batches and ranks.
        """


@dataclass(frozen=True)
class TokenMean(Reduction):
    """Σ_i Σ_t loss_{i,t} / Σ_i |y_i|: the mean over all response tokens of the step, per token.

    The default: every token has the same weight. Long responses weigh more, and in a mix of tasks the one with
    long answers takes most of the gradient. Where each trajectory should count once, use `SequenceMean`.

    Example:
        >>> two = torch.tensor(2.0)
        >>> TokenMean()(torch.ones(1, 3), torch.tensor([[False, True, True]]), two, torch.tensor(1.0))
        tensor(1.)
    """

    @override
    def __call__(
        self,
        losses: Float[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
        num_active_tokens: Float[Tensor, ""],
        num_trajectories: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        return torch.where(mask, promote(losses), 0.0).sum() / num_active_tokens.clamp(min=1)


@dataclass(frozen=True)
class SequenceMean(Reduction):
    """(1/N) Σ_i (1/|y_i|) Σ_t loss_{i,t}: the mean of trajectories' token means, per token.

    Each trajectory counts once, whatever its length. A token of a long response weighs less than one of a
    short response, so errors in long responses cost less. It is not the gradient of the sequence KL
    (`TrajectorySum` is).

    Reference:
        Shao et al., DeepSeekMath: pushing the limits of mathematical reasoning in open language models (GRPO),
        arXiv 2402.03300 (2024), equation (3).

    Example:
        >>> losses, mask = torch.tensor([[4.0, 9.0], [1.0, 3.0]]), torch.tensor([[True, False], [True, True]])
        >>> SequenceMean()(losses, mask, torch.tensor(3.0), torch.tensor(2.0))
        tensor(3.)
    """

    @override
    def __call__(
        self,
        losses: Float[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
        num_active_tokens: Float[Tensor, ""],
        num_trajectories: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        totals = torch.where(mask, promote(losses), 0.0).sum(-1)
        return (totals / mask.sum(-1).clamp(min=1)).sum() / num_trajectories.clamp(min=1)


@dataclass(frozen=True)
class TrajectorySum(Reduction):
    """(1/N) Σ_i Σ_t loss_{i,t}: the sum over tokens, per trajectory.

    The only reduction whose gradient is that of the sequence KL, E Σ_t Â_t ∇log π. Its size grows
    with the length of the responses: the learning rate must be adapted, and clipping of the gradient norm
    acts on long responses first.

    Reference:
        Liu, Fu, Shen, Jiang, On-policy distillation in model merging (2026), Theorem 1;
        `.github/THEORY.md`, sections 2 and 6.

    Example:
        >>> losses, mask = torch.tensor([[4.0, 9.0], [1.0, 3.0]]), torch.tensor([[True, False], [True, True]])
        >>> TrajectorySum()(losses, mask, torch.tensor(3.0), torch.tensor(2.0))
        tensor(4.)
    """

    @override
    def __call__(
        self,
        losses: Float[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
        num_active_tokens: Float[Tensor, ""],
        num_trajectories: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        return torch.where(mask, promote(losses), 0.0).sum() / num_trajectories.clamp(min=1)
