"""Off-policy weights: how much a token counts if another policy than the student sampled it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import bounded_log_ratio


class OffPolicyWeight(ABC):
    """The importance weight of each token, w_t from π_train(a_t|s_t) / π_rollout(a_t|s_t).

    A weight per token corrects which action was sampled, not which states were visited. Tokens outside a
    nucleus are never sampled, so with top-p the fixed point holds inside the nucleus only
    (`.github/THEORY.md`, section 5).
    """

    @abstractmethod
    def __call__(
        self, old_logprobs: Float[Tensor, "batch time"], rollout_logprobs: Float[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time"]:
        """Return the detached weight of every token, without unit.

        Args:
            old_logprobs: Log-probs of the student that trains, before the rollout batch's first update, in nats.
            rollout_logprobs: Log-probs of the policy that sampled the tokens, in nats.
        """


@dataclass(frozen=True)
class TruncatedImportance(OffPolicyWeight):
    """w_t = min(π_train / π_rollout, c): unbiased per token up to the truncation.

    It suits top-p sampling, another engine's log-probs, or rollouts a few updates old. For responses of
    data sets or other models nearly all weights are 0 or c, so it does not suit them.

    Args:
        max_weight: c; 5 is common.

    Reference:
        Ionides, Truncated importance sampling (2008).

    Example:
        >>> TruncatedImportance(5.0)(torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, -9.0]]))
        tensor([[1., 5.]])
    """

    max_weight: float = 5.0

    def __post_init__(self) -> None:
        """Refuse a limit below the weight of a token that is on-policy."""
        if not self.max_weight >= 1:
            msg = f"`max_weight` must be at least 1, got {self.max_weight}."
            raise ConfigError(msg)

    @override
    def __call__(
        self, old_logprobs: Float[Tensor, "batch time"], rollout_logprobs: Float[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time"]:
        return bounded_log_ratio(old_logprobs, rollout_logprobs).detach().exp().clamp(max=self.max_weight)


@dataclass(frozen=True)
class MaskedImportance(OffPolicyWeight):
    """w_t = π_train / π_rollout where it lies in [ε_low, ε_high], else 0: doubtful tokens give no gradient.

    It is stricter than truncation: where the two policies disagree that much, one log-prob is more likely wrong
    than informative (another engine's kernels, mixtures of experts). It is biased towards tokens on which both
    agree.

    Args:
        low: ε_low, at most 1.
        high: ε_high, at least 1.

    Reference:
        Masked importance sampling of Prime Intellect, prime-rl (2025, software), ratios kept in [0.125, 8].

    Example:
        >>> MaskedImportance(0.125, 8.0)(torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, -9.0]]))
        tensor([[1., 0.]])
    """

    low: float = 0.125
    high: float = 8.0

    def __post_init__(self) -> None:
        """Refuse a range that drops tokens that are on-policy."""
        if not 0 <= self.low <= 1 <= self.high:
            msg = f"`low` and `high` must satisfy 0 ≤ low ≤ 1 ≤ high, got {self.low} and {self.high}."
            raise ConfigError(msg)

    @override
    def __call__(
        self, old_logprobs: Float[Tensor, "batch time"], rollout_logprobs: Float[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time"]:
        weights = bounded_log_ratio(old_logprobs, rollout_logprobs).detach().exp()
        return torch.where((weights >= self.low) & (weights <= self.high), weights, 0.0)
