"""Outcome advantages: from rewards of sibling trajectories to one number per trajectory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
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
class RLOO(OutcomeAdvantage):
    """R_i − mean_{j≠i} R_j: reward minus the mean reward of the other siblings; unit of the reward.

    It is unbiased and not normalised, which suits training beside a teacher. It needs several samples per
    prompt; where siblings nearly always agree, most groups give no gradient.

    Reference:
        Kool, van Hoof, Welling, Buy 4 REINFORCE samples, get a baseline for free! (2019), equation (8).

    Example:
        >>> RLOO()(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([7, 7, 7]))
        tensor([ 1.0000, -0.5000, -0.5000])
    """

    @override
    def __call__(self, rewards: Float[Tensor, " batch"], group_ids: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        centred, sizes = _centred(rewards, group_ids)
        return centred * sizes / (sizes - 1)  # r − mean of the others = (r − mean) n / (n − 1)


@dataclass(frozen=True)
class DrGRPO(OutcomeAdvantage):
    """R_i − mean_j R_j over all siblings j, i included; unit of the reward.

    It is (n − 1)/n of `RLOO`: the same direction, and a step that depends on the number of samples. Beside
    a teacher's term, where the scale matters, use `RLOO`.

    Reference:
        Liu et al., Understanding R1-Zero-like training: a critical perspective (Dr. GRPO), arXiv 2503.20783 (2025).

    Example:
        >>> DrGRPO()(torch.tensor([3.0, 0.0, 0.0]), torch.tensor([7, 7, 7]))
        tensor([ 2., -1., -1.])
    """

    @override
    def __call__(self, rewards: Float[Tensor, " batch"], group_ids: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return _centred(rewards, group_ids)[0]


@dataclass(frozen=True)
class GRPO(OutcomeAdvantage):
    """(R_i − mean_j R_j) / (std_j R_j + ε), the sample standard deviation over siblings; without unit.

    Every group that disagrees has the same weight: a question with one success in eight gives as large a
    gradient as an even one, so this is not the gradient of the mean reward. The teacher's term is added after
    the normalisation, never inside. Where α R should tilt the teacher's distribution by a known amount, use
    `RLOO`.

    Args:
        eps: ε in the unit of the reward; groups that agree get 0.

    Reference:
        Shao et al., DeepSeekMath: pushing the limits of mathematical reasoning in open language models (GRPO),
        arXiv 2402.03300 (2024), section 4.1.2.

    Example:
        >>> GRPO()(torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([7, 7, 7, 7]))
        tensor([ 0.4999, -1.4997,  0.4999,  0.4999])
    """

    eps: float = 1e-4

    @override
    def __call__(self, rewards: Float[Tensor, " batch"], group_ids: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        centred, sizes = _centred(rewards, group_ids)
        _, group = torch.unique(group_ids, return_inverse=True)
        squares = torch.zeros_like(centred).index_add(0, group, centred.square())[group]
        return centred / ((squares / (sizes - 1)).sqrt() + self.eps)


def _centred(
    rewards: Float[Tensor, " batch"], group_ids: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Return each reward minus its group's mean (exactly 0 in a group that agrees), and the group's size."""
    rewards = promote(rewards)
    _, group, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
    if bool((sizes < 2).any()):  # nothing to compare with
        msg = (
            "Expected at least 2 samples per prompt to compare rewards of siblings, got a group of 1. "
            "Set `data.samples_per_prompt` to 2 or more."
        )
        raise ConfigError(msg)
    best = torch.full_like(sizes, -torch.inf, dtype=rewards.dtype).scatter_reduce(0, group, rewards, "amax")
    rewards = rewards - best[group]
    means = torch.zeros_like(best).index_add(0, group, rewards) / sizes
    return rewards - means[group], sizes[group]
