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
        """Return this micro-batch's share of the loss.

        Args:
            losses: Loss of every token.
            mask: Tokens that count.
            num_active_tokens: Response tokens of the optimiser step over all micro-batches and ranks.
            num_trajectories: Trajectories of the optimiser step over all micro-batches and ranks.
        """


@dataclass(frozen=True)
class TokenMean(Reduction):
    """Mean over all response tokens of the optimiser step: long responses weigh more.

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
