"""Outcome advantages: from rewards of sibling trajectories to one number per trajectory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from lightning_opd.functional.logprobs import promote


class OutcomeAdvantage(ABC):
    """Compares the rewards of siblings."""

    @abstractmethod
    def __call__(self, rewards: Float[Tensor, " batch"], group_ids: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the advantage of every trajectory.

        Raises:
            ValueError: A group is too small for the comparison.
        """


@dataclass(frozen=True)
class LeaveOneOut(OutcomeAdvantage):
    """Reward minus the mean reward of the other siblings: unbiased, no normalisation.

    Reference:
        Kool, van Hoof, Welling, Buy 4 REINFORCE samples, get a baseline for free! (2019), equation (8).

    Example:
        >>> LeaveOneOut()(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([7, 7, 7]))
        tensor([ 1.0000, -0.5000, -0.5000])
    """

    @override
    def __call__(self, rewards: Float[Tensor, " batch"], group_ids: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        rewards = promote(rewards)
        _, group, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
        if bool((sizes < 2).any()):
            msg = (
                "Expected at least 2 samples per prompt for the leave-one-out baseline, got a group of 1. "
                "Set `data.samples_per_prompt` to 2 or more."
            )
            raise ValueError(msg)
        totals = torch.zeros_like(sizes, dtype=rewards.dtype).index_add(0, group, rewards)
        others: Tensor = (totals[group] - rewards) / (sizes[group] - 1)
        return rewards - others
