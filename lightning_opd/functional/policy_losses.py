"""Policy losses: from log-probs and advantages to a per-token loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.functional.logprobs import promote


class PolicyLoss(ABC):
    """A per-token surrogate whose negative gradient is a policy gradient."""

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
            old_logprobs: Log-probs of the policy that wrote the tokens, in nats.
            advantages: Detached factor of each token's gradient.
        """


@dataclass(frozen=True)
class Reinforce(PolicyLoss):
    """−Â_t log π(a_t|s_t): the score-function gradient, exact for tokens the current student wrote.

    Not for stale rollouts: it does not correct for another behaviour policy.

    Reference:
        Williams, Simple statistical gradient-following algorithms (1992), equation (3).
    """

    @override
    def __call__(
        self,
        logprobs: Float[Tensor, "batch time"],
        old_logprobs: Float[Tensor, "batch time"],
        advantages: Float[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time"]:
        return -promote(advantages).detach() * promote(logprobs)
