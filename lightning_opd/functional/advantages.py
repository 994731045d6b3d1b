"""Advantage estimators: from the log-ratio of teacher and student to the factor of each token's gradient.

`.github/THEORY.md`, sections 2 and 3, says which of them are exact and why.
"""

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
        looks_ahead: Whether Â_t depends on other positions. Such estimators are refused with cross-tokenizer
            teachers, whose earlier tokens already depend on later bytes.
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
    """Â_t = r_t: each token is credited with its own log-ratio only.

    The practical default. It equals the gradient of the full-vocabulary reverse KL at the visited
    states with the state distribution held fixed. It has low variance and is biased for the sequence KL,
    yet π = T is its only stationary point (tabular, full support, realisable: Theorem 3). An early choice
    that decides how well later tokens can match gets no credit; use `LogRatioToGo` or `KLToGo` there.

    Reference:
        Liu, Fu, Shen, Jiang, On-policy distillation in model merging (2026), section 1.2;
        `.github/THEORY.md`, section 3.

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
    """Â_t = Σ_{t'≥t} γ^{t'−t} r_t': each token is credited with itself and all later tokens, in nats.

    With γ = 1 it is exact for the gradient of the sequence KL (REINFORCE). Its variance then grows about
    as T^2.4 with the length T (a Markov student near its teacher), that of `Immediate` (γ = 0) as T^1;
    a γ in between trades bias for variance. t counts response tokens only, not tokens of tools and users.
    Most cross-tokenizer teachers refuse it; at γ = 1 long responses need a baseline.

    Args:
        discount: γ in [0, 1].

    Reference:
        Williams, Simple statistical gradient-following algorithms (1992);
        Liu, Fu, Shen, Jiang, On-policy distillation in model merging (2026), Theorem 1 (ii) and (iii);
        `.github/THEORY.md`, section 2.

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
    """Â_t = Σ_{t'} r_t' = log T(y|x) − log π(y|x): every token is credited with the whole response, in nats.

    It is exact for the gradient of the sequence KL and has the highest variance, because a token is also
    credited with earlier tokens. It serves comparisons, and rewards that exist per text only. For training
    prefer `LogRatioToGo`, or add a baseline.

    Reference:
        Liu, Fu, Shen, Jiang, On-policy distillation in model merging (2026), Theorem 1 (i);
        `.github/THEORY.md`, section 2.

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
    """Â_t = r_t − Σ_{t'>t} KL(s_t'): later log-ratios are replaced by their mean at each visited state, in nats.

    It is exact for the gradient of the sequence KL. With values close to V(s_t) its variance grows nearly as
    that of `Immediate` (T^1.1); without values it grows faster than that of `LogRatioToGo`, so always give it a
    critic or a baseline. If r is transformed, KL(s) must be −E_{a∼π}[transformed r(s, a)]
    (`log_ratio_transforms.expected_log_ratio`); a clipped r with the plain KL is biased. A teacher that returns
    sampled or top-k log-probs only cannot give this mean.

    Reference:
        Liu, Fu, Shen, Jiang, On-policy distillation in model merging (2026), Theorem 1 (iv) and (v);
        `.github/THEORY.md`, section 2.

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

    Takes log₂(time) steps; each step doubles the distance that every position covers.
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
