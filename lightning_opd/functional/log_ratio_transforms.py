"""Log-ratio transforms: bounded, extrapolated or gated forms of the log-ratio, one element at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.divergences import IMPOSSIBLE_LOGPROB
from lightning_opd.functional.logprobs import promote


class LogRatioTransform(ABC):
    """Changes the log-ratio r of one token; the same on sampled tokens and on the whole vocabulary.

    Attributes:
        needs_reference: Whether it needs log-probs of a reference model.
    """

    needs_reference: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        log_ratio: Float[Tensor, "*shape"],
        student_logprobs: Float[Tensor, "*shape"],
        teacher_logprobs: Float[Tensor, "*shape"],
        reference_logprobs: Float[Tensor, "*shape"] | None = None,
    ) -> Float[Tensor, "*shape"]:
        """Return the transformed log-ratio.

        Args:
            log_ratio: log T − log π after all earlier transforms.
            student_logprobs: log π in nats.
            teacher_logprobs: log T in nats.
            reference_logprobs: log-probs of a reference model in nats, or None.
        """


@dataclass(frozen=True)
class Clip(LogRatioTransform):
    """r → min(max(r, −c), c), in nats: one token cannot outweigh all others.

    It keeps the sign, so under `Immediate` π = T stays the only full-support fixed point (tabular, exact
    expectation; `.github/THEORY.md`, section 3). Under to-go estimators a clipped sum is another objective:
    choose a large c there.

    Args:
        limit: c in nats.
    """

    limit: float = 5.0

    def __post_init__(self) -> None:
        """Refuse a limit that leaves nothing."""
        if not self.limit > 0:
            msg = f"`limit` must be positive, got {self.limit}."
            raise ConfigError(msg)

    @override
    def __call__(
        self,
        log_ratio: Float[Tensor, "*shape"],
        student_logprobs: Float[Tensor, "*shape"],
        teacher_logprobs: Float[Tensor, "*shape"],
        reference_logprobs: Float[Tensor, "*shape"] | None = None,
    ) -> Float[Tensor, "*shape"]:
        return log_ratio.clamp(-self.limit, self.limit)


@dataclass(frozen=True)
class BoundedDifference(LogRatioTransform):
    """r → T^α − π^α, without unit and within [−1, 1]; α → 0 is α·r.

    It is bounded by construction, where the log-ratio has a heavy negative tail. It keeps the sign, hence the
    fixed point π = T of `Immediate`. It ignores the result of earlier transforms, so it comes first. Tokens
    that are rare under both models barely count, so do not use it where the student must learn rare tokens.
    The learning rate has to be chosen anew.

    Args:
        exponent: α > 0.

    Reference:
        Zhao, Tong, Fan, Nie, Li, Shen, PowerOPD: stabilizing on-policy distillation with bounded power
        transformation, arXiv 2606.17199 (2026).
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an exponent that flattens or turns the sign."""
        if not self.exponent > 0:
            msg = f"`exponent` must be positive, got {self.exponent}."
            raise ConfigError(msg)

    @override
    def __call__(
        self,
        log_ratio: Float[Tensor, "*shape"],
        student_logprobs: Float[Tensor, "*shape"],
        teacher_logprobs: Float[Tensor, "*shape"],
        reference_logprobs: Float[Tensor, "*shape"] | None = None,
    ) -> Float[Tensor, "*shape"]:
        return (self.exponent * teacher_logprobs).exp() - (self.exponent * student_logprobs).exp()


@dataclass(frozen=True)
class Extrapolation(LogRatioTransform):
    """r → r + (λ − 1)(log T − log ref), which is λ(log T − log ref) − (log π − log ref) of a plain r, in nats.

    The student goes on in the direction that led from the reference to the teacher. Under `Immediate` the fixed
    point is π ∝ T^λ ref^(1−λ) instead of the teacher; λ = 1 is plain distillation, λ = 0 gives the reference.
    The reference should be the model that the teacher was trained from. Do not use it for parity with the
    teacher.

    Args:
        scale: λ; the paper uses 1.25.

    Reference:
        Yang, Liu, Xie, Yang, Yang, Lin, Learning beyond teacher: generalized on-policy distillation with reward
        extrapolation (G-OPD), arXiv 2602.12125 (2026).

    Raises:
        ValueError: The reference's log-probs are missing.
    """

    needs_reference: ClassVar[bool] = True
    scale: float = 1.25

    @override
    def __call__(
        self,
        log_ratio: Float[Tensor, "*shape"],
        student_logprobs: Float[Tensor, "*shape"],
        teacher_logprobs: Float[Tensor, "*shape"],
        reference_logprobs: Float[Tensor, "*shape"] | None = None,
    ) -> Float[Tensor, "*shape"]:
        if reference_logprobs is None:
            msg = (
                "Extrapolation needs `reference_logprobs`, got None. "
                "Configure a reference model, or drop this log-ratio transform (a scale of 1 is plain distillation)."
            )
            raise ConfigError(msg)
        return log_ratio + (self.scale - 1) * (teacher_logprobs - reference_logprobs)


@dataclass(frozen=True)
class OneSidedTrustRegion(LogRatioTransform):
    """r → 0 where r > 0 and log π − log T > c_high, or r < 0 and log T − log π > c_low; else r. In nats.

    It drops a log-ratio that would move the student further away from the teacher once the student has left the
    region around the teacher on that side; it never drops one that moves the student back. A plain or clipped r
    always points to the teacher, so there it changes nothing. It matters after transforms with another fixed
    point: after `Extrapolation` with λ > 1, under `Immediate`, the fixed point is
    π = T·min(e^c_high, (T/ref)^(λ−1) e^−k) with k normalising, if that k is ≥ 0. If not (and mostly for
    λ < 1) the other actions of the state still push, and the bound does not hold. It does not protect
    against stale rollouts; `PPOClip` and `MaskedImportance` compare with the policy that sampled.

    Args:
        low: c_low in nats, how far log π may lie below log T.
        high: c_high in nats, how far log π may lie above log T.

    Reference:
        The one-sided mask of Prime Intellect, prime-rl (2026, software), with the teacher in the place of the
        sampling policy.
    """

    low: float = 1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        """Refuse negative bounds."""
        if not (self.low >= 0 and self.high >= 0):
            msg = f"`low` and `high` must not be negative, got {self.low} and {self.high}."
            raise ConfigError(msg)

    @override
    def __call__(
        self,
        log_ratio: Float[Tensor, "*shape"],
        student_logprobs: Float[Tensor, "*shape"],
        teacher_logprobs: Float[Tensor, "*shape"],
        reference_logprobs: Float[Tensor, "*shape"] | None = None,
    ) -> Float[Tensor, "*shape"]:
        lead = student_logprobs - teacher_logprobs
        pushes_out = ((log_ratio > 0) & (lead > self.high)) | ((log_ratio < 0) & (lead < -self.low))
        return torch.where(pushes_out, 0.0, log_ratio)


def shape(
    transforms: Sequence[LogRatioTransform],
    student_logprobs: Float[Tensor, "*shape"],
    teacher_logprobs: Float[Tensor, "*shape"],
    reference_logprobs: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Return the detached log-ratio log T − log π, transformed in the given order, in at least float32.

    Log-probs are clamped to at least −100 nats, so that impossible tokens give finite log-ratios.

    Args:
        transforms: Applied one after the other.
        student_logprobs: log π in nats.
        teacher_logprobs: log T in nats.
        reference_logprobs: log-probs of a reference model in nats, or None.

    Example:
        >>> shape([Clip(5.0)], torch.tensor([-1.0, -1.0]), torch.tensor([-2.0, -torch.inf]))
        tensor([-1., -5.])
    """
    student, teacher = _floored(student_logprobs), _floored(teacher_logprobs)
    reference = None if reference_logprobs is None else _floored(reference_logprobs)
    log_ratio = teacher - student
    for log_ratio_transform in transforms:
        log_ratio = log_ratio_transform(log_ratio, student, teacher, reference)
    return log_ratio


def expected_log_ratio(
    transforms: Sequence[LogRatioTransform],
    student_logprobs: Float[Tensor, "*shape vocab"],
    teacher_logprobs: Float[Tensor, "*shape vocab"],
    reference_logprobs: Float[Tensor, "*shape vocab"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Return −E_{a∼π}[transformed r(s, a)] at every state, detached: the `kl` of `KLToGo` and `StateKL`, in nats.

    Without log-ratio transforms this is KL(π ‖ T).

    Args:
        transforms: As given to `shape` for the sampled tokens.
        student_logprobs: log π(·|s) in nats, summing to 1.
        teacher_logprobs: log T(·|s) in nats.
        reference_logprobs: log-probs of a reference model in nats, or None.
    """
    transformed = shape(transforms, student_logprobs, teacher_logprobs, reference_logprobs)
    return -(promote(student_logprobs).detach().exp() * transformed).sum(-1)


def _floored(logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return promote(logprobs).detach().clamp(min=IMPOSSIBLE_LOGPROB)
