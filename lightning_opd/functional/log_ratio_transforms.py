"""Shapings: bounded, extrapolated or gated forms of the log-ratio, one element at a time."""

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
        needs_reference: Whether log-probs of a reference model must be given.
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
            log_ratio: What the log-ratio transforms before this one made of log T − log π.
            student_logprobs: log π in nats.
            teacher_logprobs: log T in nats.
            reference_logprobs: log-probs of a reference model in nats, or None.
        """


@dataclass(frozen=True)
class Clip(LogRatioTransform):
    """r → min(max(r, −c), c), in nats: one token cannot outweigh all others.

    Keeps the sign, so under `Immediate` π = T stays the only full-support fixed point (tabular, exact
    expectation). Under to-go estimators a clipped sum is another objective: choose c wide there.

    Args:
        limit: c in nats.
    """

    limit: float = 5.0

    def __post_init__(self) -> None:
        """Refuse a limit that leaves nothing."""
        if self.limit <= 0:
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

    Bounded by construction where the log-ratio has a heavy negative tail. Keeps the sign, hence the
    fixed point π = T of `Immediate`. Replaces what earlier log-ratio transforms did, so it comes first. Tokens
    rare under both models barely count: not where rare tokens carry the lesson, and the learning
    rate has to be chosen anew.

    Args:
        exponent: α > 0.

    Reference:
        Zhao et al., PowerOPD: stabilizing on-policy distillation with bounded power transformation, arXiv 2606.17199.
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an exponent that flattens or turns the sign."""
        if self.exponent <= 0:
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

    Goes on in the direction that led from the reference to the teacher. The fixed point is no longer
    the teacher but, under `Immediate`, π ∝ T^λ ref^(1−λ); λ = 1 is plain distillation, 0 the
    reference. Not where parity with the teacher is wanted, and not with a reference that is not
    the model the teacher came from.

    Args:
        scale: λ; 1.25 was published.

    Reference:
        G-OPD, arXiv 2602.12125 (2026).

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

    Drops the push that leads further away from the teacher once the student has left the region
    around it on that side; the way back is never closed. A plain or clipped r always points to the
    teacher, so there it changes nothing and π = T is the fixed point as before. It acts after
    log-ratio transforms that aim elsewhere: after `Extrapolation` with λ > 1, under `Immediate`, the fixed point is
    π = T·min(e^c_high, (T/ref)^(λ−1) e^−k) with k normalising, if that k is ≥ 0. If not (and mostly for
    λ < 1) a dropped push is one beside others that are not 0, and the bound does not hold. Not a guard
    against stale rollouts: those are measured against the policy that sampled (`PPOClip`, `MaskedImportance`).

    Args:
        low: c_low in nats, the room below the teacher.
        high: c_high in nats, the room above the teacher.

    Reference:
        The one-sided mask of prime-rl (2026), with the teacher in the place of the sampling policy.
    """

    low: float = 1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a region without room."""
        if self.low < 0 or self.high < 0:
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

    Log-probs are floored at −100 nats, so that what a model cannot say repels with finite force.

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
