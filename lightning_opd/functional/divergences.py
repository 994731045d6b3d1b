"""Divergences between the student's and the teacher's next-token distributions, in nats per position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import log_softmax, over_positions, promote

IMPOSSIBLE_LOGPROB = -100.0
"""Lowest log-prob in nats of a teacher, so that a token without probability gives a finite loss."""


class Divergence(ABC):
    """A divergence between two distributions, as logits."""

    @abstractmethod
    def __call__(
        self, student_logits: Float[Tensor, "*shape vocab"], teacher_logits: Float[Tensor, "*shape vocab"]
    ) -> Float[Tensor, "*shape"]:
        """Return the divergence at every position, in nats; differentiable in `student_logits`.

        Log-probs may take the place of logits.
        """


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(student ‖ teacher) = Σ_a π(a) (log π(a) − log T(a)), the objective of on-policy distillation.

    It is mode-seeking: the student may drop modes of the teacher, and pays for mass where the teacher has
    none. On sampled states its gradient is the expectation of the immediate estimator's, at a fraction of the
    variance (`.github/THEORY.md`, section 3). It needs the teacher's full distribution. The student may settle
    on one of several modes; where it must keep all of them, use `ForwardKL`.

    Reference:
        Liu, Fu, Shen, Jiang, On-policy distillation in model merging (2026), section 1.1, equation (2).

    Example:
        >>> import torch
        >>> ReverseKL()(torch.zeros(3), torch.zeros(3)).item()
        0.0
    """

    @override
    def __call__(
        self, student_logits: Float[Tensor, "*shape vocab"], teacher_logits: Float[Tensor, "*shape vocab"]
    ) -> Float[Tensor, "*shape"]:
        student = log_softmax(student_logits).clamp(min=IMPOSSIBLE_LOGPROB)
        teacher = log_softmax(teacher_logits).clamp(min=IMPOSSIBLE_LOGPROB)
        return (student.exp() * (student - teacher)).sum(-1)


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(teacher ‖ student) = Σ_a T(a) (log T(a) − log π(a)), in nats.

    It is mass-covering: the student must put mass wherever the teacher does, and a student too small for that
    also puts mass where the teacher has none. The gradient in the logits is π − T, as in supervised
    training on the teacher's distribution. Its one-sample form is e^r − 1 − r differentiated (k3),
    which is not a reverse KL. It is not the objective of on-policy distillation: at the states that the
    student visits it weighs tokens by the teacher.

    Reference:
        Hinton, Vinyals, Dean, Distilling the knowledge in a neural network, arXiv 1503.02531 (2015);
        Agarwal et al., On-policy distillation of language models: learning from self-generated mistakes (GKD),
        arXiv 2306.13649 (2024).

    Example:
        >>> ForwardKL()(torch.zeros(3), torch.zeros(3)).item()
        0.0
    """

    @override
    def __call__(
        self, student_logits: Float[Tensor, "*shape vocab"], teacher_logits: Float[Tensor, "*shape vocab"]
    ) -> Float[Tensor, "*shape"]:
        student = log_softmax(student_logits)
        # only −inf is replaced: a small probability must be able to grow if the teacher has mass there
        student = torch.where(student > -torch.inf, student, IMPOSSIBLE_LOGPROB)
        teacher = log_softmax(teacher_logits).clamp(min=IMPOSSIBLE_LOGPROB)
        return (teacher.exp() * (teacher - student)).sum(-1)


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """w·KL(T ‖ m) + (1 − w)·KL(π ‖ m) with m = w·T + (1 − w)·π, in nats.

    It is bounded by the entropy of (w, 1 − w), log 2 at w = ½, so no token dominates. Divided by w it tends to
    the forward KL as w → 0, divided by 1 − w to the reverse KL as w → 1, so the size of the gradient, and with
    it the learning rate, depends on w. Where student and teacher hardly overlap its gradient is nearly 0.

    Args:
        weight: w in (0, 1), the teacher's fraction of the mixture.

    Reference:
        Agarwal et al., On-policy distillation of language models: learning from self-generated mistakes (GKD),
        arXiv 2306.13649 (2024), generalised Jensen–Shannon divergence with β = w.

    Example:
        >>> JensenShannon()(torch.zeros(3), torch.zeros(3)).item()
        0.0
    """

    weight: float = 0.5

    def __post_init__(self) -> None:
        """Refuse the ends, where the divergence is identically 0."""
        if not 0 < self.weight < 1:
            msg = f"`weight` must lie in (0, 1), got {self.weight}. For the ends use `ForwardKL` or `ReverseKL`."
            raise ConfigError(msg)

    @override
    def __call__(
        self, student_logits: Float[Tensor, "*shape vocab"], teacher_logits: Float[Tensor, "*shape vocab"]
    ) -> Float[Tensor, "*shape"]:
        student = log_softmax(student_logits).clamp(min=IMPOSSIBLE_LOGPROB)
        teacher = log_softmax(teacher_logits).clamp(min=IMPOSSIBLE_LOGPROB)
        mixture = torch.logaddexp(teacher + log(self.weight), student + log(1 - self.weight))
        towards_teacher = (teacher.exp() * (teacher - mixture)).sum(-1)
        towards_student = (student.exp() * (student - mixture)).sum(-1)
        return self.weight * towards_teacher + (1 - self.weight) * towards_student


def linear_divergence(
    divergence: Callable[[Tensor, Tensor], Tensor],
    student_states: Float[Tensor, "batch time hidden"],
    student_head: Callable[[Tensor], Tensor],
    teacher_states: Float[Tensor, "batch time teacher_hidden"],
    teacher_head: Callable[[Tensor], Tensor],
    mask: Bool[Tensor, "batch time"],
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    chunk_size: int | None = None,
) -> Float[Tensor, "batch time *more"]:
    """Return a full-vocabulary divergence where `mask` holds, without all logits in memory at once.

    Args:
        divergence: Compares two sets of logits.
        student_states: States from which the student's head predicts token t.
        student_head: Maps the student's states to logits.
        teacher_states: States from which the teacher's head predicts token t.
        teacher_head: Maps the teacher's states to logits of the same vocabulary.
        mask: Positions that count; 0 elsewhere.
        student_temperature: Divides the student's logits.
        teacher_temperature: Divides the teacher's logits.
        chunk_size: Positions per chunk; by default everything at once.
    """

    def compare(student: Tensor, teacher: Tensor) -> Tensor:
        return divergence(
            promote(student_head(student)) / student_temperature, promote(teacher_head(teacher)) / teacher_temperature
        )

    return over_positions(compare, mask, student_states, teacher_states, chunk_size=chunk_size)
