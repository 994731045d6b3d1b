"""Baselines: what a token's return is compared with; the expected gradient does not change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import promote

Sum: TypeAlias = Callable[[Tensor], Tensor]
"""Adds a tensor up over all ranks."""


def _here_only(x: Tensor) -> Tensor:
    return x


class Baseline(ABC):
    """A number per token that does not depend on the token itself: b(s_t), in nats.

    Attributes:
        needs_kl: Whether `kl` must be given.
        needs_other_rows: Whether it reads other rows, so that it must get the whole rollout batch before the
            split into micro-batches.
        needs_siblings: Whether it compares the responses to one prompt, of which there must be two or more.
    """

    needs_kl: ClassVar[bool] = False
    needs_other_rows: ClassVar[bool] = False
    needs_siblings: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        returns: Float[Tensor, "batch time"],
        response_mask: Bool[Tensor, "batch time"],
        group_ids: Int[Tensor, " batch"],
        kl: Float[Tensor, "batch time"] | None = None,
        sum_over_ranks: Sum = _here_only,
        is_constant_in_time: bool = False,
    ) -> Float[Tensor, "batch time"]:
        """Return the detached baseline of every token in nats, 0 outside the response.

        Args:
            returns: What the estimator gives without values.
            response_mask: True where the student generated the token.
            group_ids: Equal for siblings of one prompt.
            kl: −E_{a∼π}[transformed log-ratio] at the state that chose token t.
            sum_over_ranks: Adds a tensor up over all ranks.
            is_constant_in_time: The estimator's attribute of that name.
        """


@dataclass(frozen=True)
class LeaveOneOut(Baseline):
    """b_t = mean over the other rows of the group of their return at the same response-token ordinal.

    A row that has ended counts as 0 (nothing is to go), or with its total where the return is
    constant in time (`FullTrajectory`). It is exact because siblings are drawn independently; all
    siblings of a prompt must lie on one rank. It needs at least two samples per prompt, and removes
    little variance where siblings diverge early.

    Reference:
        Kool, van Hoof, Welling, Buy 4 REINFORCE samples, get a baseline for free! (2019, ICLR workshop);
        `.github/THEORY.md`, section 2.

    Raises:
        ValueError: A group has one row only.

    Example:
        >>> returns, mask = torch.tensor([[3.0, 1.0], [5.0, 0.0]]), torch.tensor([[True, True], [True, False]])
        >>> LeaveOneOut()(returns, mask, torch.tensor([7, 7]))
        tensor([[5., 0.],
                [3., 0.]])
    """

    needs_other_rows: ClassVar[bool] = True
    needs_siblings: ClassVar[bool] = True

    @override
    def __call__(
        self,
        returns: Float[Tensor, "batch time"],
        response_mask: Bool[Tensor, "batch time"],
        group_ids: Int[Tensor, " batch"],
        kl: Float[Tensor, "batch time"] | None = None,
        sum_over_ranks: Sum = _here_only,
        is_constant_in_time: bool = False,
    ) -> Float[Tensor, "batch time"]:
        _, group, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
        if bool((sizes < 2).any()):
            msg = (
                "Expected at least 2 samples per prompt for the leave-one-out baseline, got a group of 1. "
                "Set `data.samples_per_prompt` to 2 or more, or use the baseline `BatchMean`."
            )
            raise ConfigError(msg)
        returns = torch.where(response_mask, promote(returns), 0.0).detach()
        ordinals = (response_mask.cumsum(-1) - 1).clamp(min=0)
        # masked positions add 0 wherever they land
        by_ordinal = torch.zeros_like(returns).scatter_add(-1, ordinals, returns)
        if is_constant_in_time:
            has_ended = torch.arange(returns.shape[-1], device=returns.device) >= response_mask.sum(-1, keepdim=True)
            by_ordinal = torch.where(has_ended, by_ordinal[:, :1], by_ordinal)
        totals = by_ordinal.new_zeros(len(sizes), returns.shape[-1]).index_add(0, group, by_ordinal)
        others = (totals[group] - by_ordinal) / (sizes[group] - 1)[:, None]
        return torch.where(response_mask, others.gather(-1, ordinals), 0.0)


@dataclass(frozen=True)
class BatchMean(Baseline):
    """b = mean return over all tokens of the other rows of the rollout batch, over all ranks.

    It removes the common level with one sample per prompt. It is exact because a row's own tokens stay out
    of its mean, and coarse because it knows neither the prompt nor the position. Where prompts differ more
    than responses do, use `LeaveOneOut`; it also fits returns that shrink along the response.

    Reference:
        Greensmith, Bartlett, Baxter, Variance reduction techniques for gradient estimates in reinforcement
        learning (2004).

    Raises:
        ValueError: The rollout batch has one row only.

    Example:
        >>> returns, mask = torch.tensor([[3.0, 1.0], [5.0, 0.0]]), torch.tensor([[True, True], [True, False]])
        >>> BatchMean()(returns, mask, torch.tensor([0, 1]))
        tensor([[5., 5.],
                [2., 0.]])
    """

    needs_other_rows: ClassVar[bool] = True

    @override
    def __call__(
        self,
        returns: Float[Tensor, "batch time"],
        response_mask: Bool[Tensor, "batch time"],
        group_ids: Int[Tensor, " batch"],
        kl: Float[Tensor, "batch time"] | None = None,
        sum_over_ranks: Sum = _here_only,
        is_constant_in_time: bool = False,
    ) -> Float[Tensor, "batch time"]:
        own = torch.where(response_mask, promote(returns), 0.0).detach().sum(-1)
        tokens = response_mask.sum(-1).to(own.dtype)
        total, num_tokens, num_rows = sum_over_ranks(
            torch.stack([own.sum(), tokens.sum(), torch.full_like(own.sum(), len(own))])
        )
        if int(num_rows) < 2:  # a row and another one
            msg = f"Expected at least 2 rows per rollout batch for the batch-mean baseline, got {int(num_rows)}."
            raise ConfigError(f"{msg} Set `data.prompts_per_batch` to 2 or more, or drop the baseline.")
        others = (total - own) / (num_tokens - tokens).clamp(min=1)
        return torch.where(response_mask, others[:, None], 0.0)


@dataclass(frozen=True)
class StateKL(Baseline):
    """b(s_t) = −KL(π(·|s_t) ‖ T(·|s_t)): the mean of r at the state, so that r_t − b(s_t) has mean 0.

    It removes the part of the token's own log-ratio that depends on the state alone. It needs the whole
    vocabulary at every state, where `DistributionMatching` is usually better still, and it does not cover
    later tokens, so it does little for long sums over the future.

    Reference:
        Oh, Song, Choi, Choi, Jo, KL for a KL: on-policy distillation with control variate baseline (vOPD),
        arXiv 2605.07865 (2026).

    Raises:
        ValueError: `kl` is missing.
    """

    needs_kl: ClassVar[bool] = True

    @override
    def __call__(
        self,
        returns: Float[Tensor, "batch time"],
        response_mask: Bool[Tensor, "batch time"],
        group_ids: Int[Tensor, " batch"],
        kl: Float[Tensor, "batch time"] | None = None,
        sum_over_ranks: Sum = _here_only,
        is_constant_in_time: bool = False,
    ) -> Float[Tensor, "batch time"]:
        if kl is None:
            msg = (
                "StateKL needs `kl`, the KL over the whole vocabulary at every state, got None. "
                "Use a teacher with full distributions (a local one), or the baseline `LeaveOneOut`."
            )
            raise ConfigError(msg)
        return torch.where(response_mask, -promote(kl), 0.0).detach()
