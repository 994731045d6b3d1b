"""Advantage estimators: from the log-ratio of teacher and student to the factor of each token's gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from lightning_opd.functional.logprobs import promote


class AdvantageEstimator(ABC):
    """Maps log-ratios r_t = log T(a_t|s_t) − log π(a_t|s_t) to advantages Â_t."""

    looks_ahead: ClassVar[bool] = False
    """Whether a token answers for log-ratios of other positions, too."""

    @abstractmethod
    def __call__(
        self,
        log_ratio: Float[Tensor, "batch time"],
        response_mask: Bool[Tensor, "batch time"],
        kl: Float[Tensor, "batch time"] | None = None,
        group_ids: Int[Tensor, " batch"] | None = None,
        values: Float[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        """Return the detached advantage of every token in nats, 0 outside the response.

        Args:
            log_ratio: Teacher minus student log-prob, possibly shaped.
            response_mask: True where the student wrote the token.
            kl: −E_{a∼π}[shaped log-ratio] at the state that chose token t.
            group_ids: Equal for siblings of one prompt.
            values: V(s_t), subtracted where given.
        """


@dataclass(frozen=True)
class Immediate(AdvantageEstimator):
    """Â_t = r_t: each token answers for its own log-ratio only.

    The practical default. Equals the gradient of the full-vocabulary reverse KL at the visited
    states with the state distribution held fixed: low variance, biased for the sequence KL, and yet
    π = T is its only stationary point (tabular, full support, realisable). Not the estimator when an
    early choice decides how well later tokens can match: it gives that choice no credit.

    Reference:
        On-policy distillation for model merging, section 1.2 (2026).

    Example:
        >>> Immediate()(torch.tensor([[9.0, -1.0]]), torch.tensor([[False, True]]))
        tensor([[ 0., -1.]])
    """

    @override
    def __call__(
        self,
        log_ratio: Float[Tensor, "batch time"],
        response_mask: Bool[Tensor, "batch time"],
        kl: Float[Tensor, "batch time"] | None = None,
        group_ids: Int[Tensor, " batch"] | None = None,
        values: Float[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        advantages = promote(log_ratio) if values is None else promote(log_ratio) - values
        return torch.where(response_mask, advantages.detach(), 0.0)
