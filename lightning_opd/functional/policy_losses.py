"""Policy losses: from log-probs and advantages to a per-token loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import bounded_log_ratio, promote


class PolicyLoss(ABC):
    """A per-token surrogate whose negative gradient is a policy gradient.

    Attributes:
        is_off_policy: Whether it corrects for updates since the tokens were sampled, so that one rollout batch
            can give several updates.
    """

    is_off_policy: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        logprobs: Float[Tensor, "batch time"],
        old_logprobs: Float[Tensor, "batch time"],
        advantages: Float[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time"]:
        """Return the loss of every token.

        Args:
            logprobs: Current student log-probs in nats, with gradient.
            old_logprobs: Log-probs of the policy that generated the tokens, in nats.
            advantages: Detached factor of each token's gradient.
        """


@dataclass(frozen=True)
class Reinforce(PolicyLoss):
    """−Â_t log π(a_t|s_t): the score-function gradient, exact for tokens the current student generated.

    It does not correct for another behaviour policy, so stale rollouts need another loss.

    Reference:
        Williams, Simple statistical gradient-following algorithms for connectionist reinforcement learning (1992),
        equation (3).
    """

    @override
    def __call__(
        self,
        logprobs: Float[Tensor, "batch time"],
        old_logprobs: Float[Tensor, "batch time"],
        advantages: Float[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time"]:
        return -promote(advantages).detach() * promote(logprobs)


@dataclass(frozen=True)
class TruncatedImportance(PolicyLoss):
    """−sg(min(ρ_t, c)) Â_t log π(a_t|s_t) with ρ_t = π / π_old: gradient −min(ρ_t, c) Â_t ∇log π(a_t|s_t).

    Below the limit this is exactly the gradient of −ρ_t Â_t: the policy gradient of the current
    student from an older student's tokens. Above it the token keeps a bounded gradient instead of none (the
    ratio is a constant in the derivative). It suits a few updates per rollout batch. It neither keeps the
    student near the old one (`PPOClip` does) nor corrects which states were visited.

    Args:
        max_ratio: c, without unit.

    Reference:
        Ionides, Truncated importance sampling (2008); MiniMax, MiniMax-M1: scaling test-time compute efficiently
        with lightning attention (CISPO), arXiv 2506.13585 (2025).
    """

    is_off_policy: ClassVar[bool] = True
    max_ratio: float = 5.0

    def __post_init__(self) -> None:
        """Refuse a limit below the ratio of an unchanged student."""
        if not self.max_ratio >= 1:
            msg = f"`max_ratio` must be at least 1, got {self.max_ratio}."
            raise ConfigError(msg)

    @override
    def __call__(
        self,
        logprobs: Float[Tensor, "batch time"],
        old_logprobs: Float[Tensor, "batch time"],
        advantages: Float[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time"]:
        ratio = bounded_log_ratio(logprobs, old_logprobs).detach().exp().clamp(max=self.max_ratio)
        return -ratio * promote(advantages).detach() * promote(logprobs)


@dataclass(frozen=True)
class PPOClip(PolicyLoss):
    """−min(ρ_t Â_t, clip(ρ_t, 1 − ε_low, 1 + ε_high) Â_t) with ρ_t = π / π_old: PPO's pessimistic bound.

    A token that has already moved past the bound in its advantage's direction gets no gradient; one
    that moved the wrong way keeps it. It suits several updates per rollout batch; with a single update it
    equals `Reinforce`.

    Args:
        clip_low: ε_low in (0, 1].
        clip_high: ε_high > 0; above ε_low it lets rare tokens grow more.

    Reference:
        Schulman et al., Proximal policy optimization algorithms, arXiv 1707.06347 (2017), equation (7);
        asymmetric bounds: Yu et al., DAPO: an open-source LLM reinforcement learning system at scale,
        arXiv 2503.14476 (2025).
    """

    is_off_policy: ClassVar[bool] = True
    clip_low: float = 0.2
    clip_high: float = 0.2

    def __post_init__(self) -> None:
        """Refuse empty bounds."""
        if not (0 < self.clip_low <= 1 and self.clip_high > 0):
            msg = f"Expected 0 < `clip_low` ≤ 1 and `clip_high` > 0, got {self.clip_low} and {self.clip_high}."
            raise ConfigError(msg)

    @override
    def __call__(
        self,
        logprobs: Float[Tensor, "batch time"],
        old_logprobs: Float[Tensor, "batch time"],
        advantages: Float[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time"]:
        advantages = promote(advantages).detach()
        ratio = bounded_log_ratio(logprobs, old_logprobs).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        return -torch.minimum(ratio * advantages, clipped * advantages)
