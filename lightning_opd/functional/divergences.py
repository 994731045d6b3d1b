"""Divergences between the student's and the teacher's next-token distributions, in nats per position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.compiled import compiled
from lightning_opd.functional.fused import Beside, BlockFunction, Fused, Part, Tokens, fused
from lightning_opd.functional.heads import HeadStates, log_softmax_, row_dot
from lightning_opd.functional.logprobs import log_softmax

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

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of what `with_gradient` measures at every position beside the divergence."""
        return ()

    def with_gradient(
        self,
        student_logits: Float[Tensor, "positions vocab"],
        teacher_logits: Float[Tensor, "positions vocab"],
        *,
        gradient: bool,
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, "positions metrics"]]:
        """Return the divergence at every position and what `metric_names` measures there, without a graph.

        By default from `__call__`; an override saves memory and time.

        Args:
            student_logits: With `gradient`, overwritten by the derivative of each position's divergence in them.
            teacher_logits: May be overwritten.
            gradient: Whether the derivative is asked for.
        """
        leaf = student_logits.detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            values = self(leaf, teacher_logits)
        if gradient:
            one = torch.ones_like(values)
            slope = torch.autograd.grad(values, leaf, one)[0] if values.requires_grad else torch.zeros_like(leaf)
            student_logits.copy_(slope)
        return values.detach(), student_logits[:, :0]

    def from_states(
        self,
        student: HeadStates,
        teachers: Sequence[HeadStates],
        weights: Float[Tensor, " positions"] | None = None,
        tokens: Tokens | None = None,
    ) -> Fused:
        """Return the divergence at every position straight from states and heads, one chunk of logits at a time.

        Student and teacher are compared on the tokens that both have, cut before any softmax.

        Args:
            student: The states and head to differentiate.
            teachers: Each with the states of its positions, which follow one another in those of the student.
            weights: The gradient with which each value is expected to come back, up to one common factor; saves a
                product with the matrix. None where it is not known.
            tokens: Whose log-probs to form from the same logits, for the rewards of an outcome; an override that
                does not leaves them None, and they are formed on their own.
        """
        parts = [against(student, teacher, self.with_gradient) for teacher in teachers]
        return fused(student, parts, weights, len(self.metric_names), tokens)


def against(student: HeadStates, teacher: HeadStates, function: BlockFunction) -> Part:
    """Return the part in which a function of (student logits, teacher logits) meets one teacher.

    Args:
        student: Whose positions are gone through.
        teacher: States of as many positions, and the teacher's head.
        function: As in `Divergence.with_gradient`.
    """
    vocab_size, dtype = min(student.head.vocab_size, teacher.head.vocab_size), teacher.dtype

    def begin() -> tuple[BlockFunction, Beside]:
        theirs, memory = teacher.detached(dtype), torch.empty(0)

        def compare(ours: Tensor, products: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor]:
            return function(ours, theirs.finish(products), gradient=gradient)

        def beside(positions: slice) -> tuple[Tensor]:
            nonlocal memory
            num_elements = (positions.stop - positions.start) * vocab_size
            if len(memory) < num_elements:
                memory = theirs.buffer(num_elements)
            return (theirs.products(positions, vocab_size, memory),)

        return compare, beside

    return Part(len(teacher.states), vocab_size, begin)


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

    @override
    @compiled
    def with_gradient(
        self,
        student_logits: Float[Tensor, "positions vocab"],
        teacher_logits: Float[Tensor, "positions vocab"],
        *,
        gradient: bool,
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, "positions metrics"]]:
        student = log_softmax_(student_logits).clamp_(min=IMPOSSIBLE_LOGPROB)
        teacher = log_softmax_(teacher_logits).clamp_(min=IMPOSSIBLE_LOGPROB)
        difference = torch.sub(student, teacher, out=teacher)
        probabilities = student.exp_()
        values = row_dot(probabilities, difference)
        if gradient:
            probabilities.mul_(difference.sub_(values[:, None]))
        return values, values.new_zeros(len(values), 0)


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
        student = torch.where(student != -torch.inf, student, IMPOSSIBLE_LOGPROB)
        teacher = log_softmax(teacher_logits).clamp(min=IMPOSSIBLE_LOGPROB)
        return (teacher.exp() * (teacher - student)).sum(-1)

    @override
    @compiled
    def with_gradient(
        self,
        student_logits: Float[Tensor, "positions vocab"],
        teacher_logits: Float[Tensor, "positions vocab"],
        *,
        gradient: bool,
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, "positions metrics"]]:
        student = log_softmax_(student_logits)
        impossible = student == -torch.inf
        student.masked_fill_(impossible, IMPOSSIBLE_LOGPROB)
        teacher = log_softmax_(teacher_logits).clamp_(min=IMPOSSIBLE_LOGPROB)
        probabilities = teacher.exp()
        values = row_dot(probabilities, teacher.sub_(student))
        if gradient:
            probabilities.masked_fill_(impossible, 0.0)
            student.exp_().mul_(probabilities.sum(-1, keepdim=True)).sub_(probabilities)
        return values, values.new_zeros(len(values), 0)


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

    @override
    @compiled
    def with_gradient(
        self,
        student_logits: Float[Tensor, "positions vocab"],
        teacher_logits: Float[Tensor, "positions vocab"],
        *,
        gradient: bool,
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, "positions metrics"]]:
        student = log_softmax_(student_logits).clamp_(min=IMPOSSIBLE_LOGPROB)
        teacher = log_softmax_(teacher_logits).clamp_(min=IMPOSSIBLE_LOGPROB)
        mixture = torch.logaddexp(teacher + log(self.weight), student + log(1 - self.weight))
        towards_teacher = row_dot(teacher.exp(), teacher.sub_(mixture))
        difference = torch.sub(student, mixture, out=mixture)
        probabilities = student.exp_()
        towards_student = row_dot(probabilities, difference)
        if gradient:
            probabilities.mul_(difference.sub_(towards_student[:, None])).mul_(1 - self.weight)
        values = self.weight * towards_teacher + (1 - self.weight) * towards_student
        return values, values.new_zeros(len(values), 0)
