"""Advantage estimators: from the log-ratio of teacher and student to the factor of each token's gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import promote


class AdvantageEstimator(ABC):
    """Maps log-ratios r_t = log T(a_t|s_t) − log π(a_t|s_t) to advantages Â_t.

    Attributes:
        needs_kl: Whether `kl` must be given.
        looks_ahead: Whether Â_t depends on other positions. Refused with cross-tokenizer teachers,
            whose earlier tokens already depend on later bytes.
        is_constant_in_time: Whether every token of a row gets the same return, so that a row keeps
            it past its own end when it serves as another row's baseline.
    """

    needs_kl: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = False
    is_constant_in_time: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        log_ratio: Float[Tensor, "batch time"],
        response_mask: Bool[Tensor, "batch time"],
        kl: Float[Tensor, "batch time"] | None = None,
        values: Float[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        """Return the detached advantage of every token in nats, 0 outside the response.

        Args:
            log_ratio: Teacher minus student log-prob, possibly transformed.
            response_mask: True where the student generated the token.
            kl: −E_{a∼π}[transformed log-ratio] at the state that chose token t.
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
        values: Float[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        return _inside(promote(log_ratio), response_mask, values)


@dataclass(frozen=True)
class LogRatioToGo(AdvantageEstimator):
    """Â_t = Σ_{t'≥t} γ^{t'−t} r_t': each token answers for itself and for what follows, in nats.

    With γ = 1 exact for the gradient of the sequence KL (REINFORCE), at a variance that grows about
    as T^2.4 with the length T (a Markov student near its teacher), against T^1 of `Immediate`, which
    is γ = 0; between them bias is traded for variance. t counts response tokens only: tokens of
    tools and users take no time. Not for cross-tokenizer teachers, and at γ = 1 not for
    long responses without a baseline.

    Args:
        discount: γ in [0, 1].

    Reference:
        Williams, Simple statistical gradient-following algorithms (1992);
        On-policy distillation for model merging, Theorem 1 (ii) and (iii) (2026).

    Example:
        >>> LogRatioToGo(0.5)(torch.tensor([[4.0, 9.0, 2.0]]), torch.tensor([[True, False, True]]))
        tensor([[5., 0., 2.]])
    """

    looks_ahead: ClassVar[bool] = True
    discount: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a discount that grows with distance."""
        if not 0 <= self.discount <= 1:
            msg = f"`discount` must lie in [0, 1], got {self.discount}."
            raise ConfigError(msg)

    @override
    def __call__(
        self,
        log_ratio: Float[Tensor, "batch time"],
        response_mask: Bool[Tensor, "batch time"],
        kl: Float[Tensor, "batch time"] | None = None,
        values: Float[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        return _inside(to_go(promote(log_ratio), response_mask, self.discount), response_mask, values)


@dataclass(frozen=True)
class FullTrajectory(AdvantageEstimator):
    """Â_t = Σ_{t'} r_t' = log T(y|x) − log π(y|x): every token answers for the whole response, in nats.

    Exact for the gradient of the sequence KL, at the highest variance of all, because a token also
    answers for what came before it. For comparison and for rewards that exist per text only; not
    for training where `LogRatioToGo` can be had, and not without a baseline.

    Reference:
        On-policy distillation for model merging, Theorem 1 (i) (2026).

    Example:
        >>> FullTrajectory()(torch.tensor([[4.0, 9.0, 2.0]]), torch.tensor([[True, False, True]]))
        tensor([[6., 0., 6.]])
    """

    looks_ahead: ClassVar[bool] = True
    is_constant_in_time: ClassVar[bool] = True

    @override
    def __call__(
        self,
        log_ratio: Float[Tensor, "batch time"],
        response_mask: Bool[Tensor, "batch time"],
        kl: Float[Tensor, "batch time"] | None = None,
        values: Float[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        total = torch.where(response_mask, promote(log_ratio), 0.0).sum(-1, keepdim=True)
        return _inside(total.expand_as(log_ratio), response_mask, values)


@dataclass(frozen=True)
class KLToGo(AdvantageEstimator):
    """Â_t = r_t − Σ_{t'>t} KL(s_t'): the future's log-ratios replaced by their mean at each visited state, in nats.

    Exact for the gradient of the sequence KL. With values close to V(s_t) its variance grows nearly as
    that of `Immediate` (T^1.1); without, faster than that of `LogRatioToGo`, so not without. If r is
    transformed, KL(s) must be −E_{a∼π}[transformed r(s, a)] (`log_ratio_transforms.expected_log_ratio`): a clipped
    r with the plain KL is biased.
    Not for teachers that answer with sampled or top-k log-probs only: the mean cannot be had there.

    Reference:
        On-policy distillation for model merging, Theorem 1 (iv) and (v) (2026).

    Example:
        >>> mask = torch.tensor([[True, False, True]])
        >>> KLToGo()(torch.tensor([[4.0, 9.0, 2.0]]), mask, kl=torch.tensor([[1.0, 9.0, 0.5]]))
        tensor([[3.5000, 0.0000, 2.0000]])
    """

    needs_kl: ClassVar[bool] = True
    looks_ahead: ClassVar[bool] = True

    @override
    def __call__(
        self,
        log_ratio: Float[Tensor, "batch time"],
        response_mask: Bool[Tensor, "batch time"],
        kl: Float[Tensor, "batch time"] | None = None,
        values: Float[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        if kl is None:
            msg = (
                "KLToGo needs `kl`, the expectation −E_{a∼π}[log-ratio] over the whole vocabulary at every state, "
                "got None. Use a teacher with full distributions (a local one), or `LogRatioToGo`."
            )
            raise ConfigError(msg)
        following = to_go(promote(kl), response_mask) - promote(kl)
        return _inside(promote(log_ratio) - following, response_mask, values)


def to_go(
    x: Float[Tensor, "batch time"], response_mask: Bool[Tensor, "batch time"], discount: float = 1.0
) -> Float[Tensor, "batch time"]:
    """Return Σ_{t'≥t} discount^n x_t' over response tokens, n the response tokens from t to t'.

    Takes log₂(time) steps: each doubles how far every position sees.
    """
    total = torch.where(response_mask, x, 0.0)
    decay = torch.where(response_mask, torch.full_like(total, discount), 1.0)
    reach = 1
    while reach < x.shape[-1]:
        total = total + decay * torch.nn.functional.pad(total[:, reach:], (0, reach))
        decay = decay * torch.nn.functional.pad(decay[:, reach:], (0, reach))
        reach *= 2
    return total


def _inside(
    advantages: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    values: Float[Tensor, "batch time"] | None,
) -> Float[Tensor, "batch time"]:
    """Subtract the values, detach, and leave nothing outside the response."""
    if values is not None:
        advantages = advantages - values
    return torch.where(response_mask, advantages, 0.0).detach()
