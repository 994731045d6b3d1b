"""Credit across tokenisations: which teacher log-prob each of the student's tokens is compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.alignment import Alignment
from lightning_opd.functional.logprobs import promote


class Credit(ABC):  # noqa: B024  # its two kinds have no method in common
    """Decides which teacher log-prob each of the student's tokens is compared with.

    Two kinds: an `AlignedCredit` computes it from the log-probs of both sides' tokens; `PrefixCredit` takes the
    teacher's whole distributions.
    """

    is_spliced: ClassVar[bool] = False
    """Whether the teacher reads a sequence assembled from the student's tokens; refused for training."""

    adds_up: ClassVar[bool] = False
    """Whether no token answers for later bytes, so that sums over tokens mean something."""


class AlignedCredit(Credit):
    """Brings a teacher's log-probs of its own tokens onto the student's tokens of the same text.

    The answer c_i takes the place of log T(a_i|s_i), so that c_i − log π(a_i|s_i) is the token's
    log-ratio. With one token on either side c_i is the teacher's log-prob, to the last bit.
    """

    @abstractmethod
    def __call__(
        self,
        student_logprobs: Float[Tensor, " student"],
        teacher_logprobs: Float[Tensor, " teacher"],
        alignment: Alignment,
    ) -> tuple[Float[Tensor, " student"], Bool[Tensor, " student"]]:
        """Return what each student token is compared with, in nats, and where there is such a thing.

        Args:
            student_logprobs: Of the tokens of one response, in nats.
            teacher_logprobs: Of the teacher's tokens of the same response, in nats.
            alignment: Pairs the two.
        """


@dataclass(frozen=True)
class PrefixCredit(Credit):
    """Compare with the teacher's probability of the text, byte by byte, whichever tokens it takes for it.

    c_i = log P(tokens ≤ i) − log P(tokens < i), where P is the probability that the teacher's text begins with
    these bytes. No token says what follows, nothing is dropped but a character that the teacher's tokenizer
    normalises, and the c_i of a response add up to the teacher's log-prob of its text. The variance is therefore that
    of the plain log-ratio, and estimators that look ahead are welcome. P needs the teacher's whole distributions, not
    log-probs of single tokens, hence a teacher in this process: `lightning_opd.teachers.CrossTokenizerTeacher`
    computes it.

    The teacher first reads its own tokens of the text, then other tokenisations of its beginnings as far as they may
    matter. Most of those that it reads for the last digits of P are absurd to it: `tolerance` says how much of P may
    be left unread. The scores of a response add up to the same for any tolerance.

    Args:
        tolerance: Largest error of each log P in nats, at least 0, which has the teacher read all; a c_i is a
            difference of two. The default is well below what bfloat16 makes of a log-prob.

    Raises:
        ConfigError: `tolerance` is negative or not finite.

    Reference:
        Vieira et al., From language models over tokens to language models over characters (2024): prefix
        probabilities by covers.
    """

    tolerance: float = 1e-4

    adds_up: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the setting."""
        if not 0 <= self.tolerance < float("inf"):
            msg = (
                f"Expected `tolerance` of `PrefixCredit` to be a number of nats, 0 or more, got {self.tolerance}. "
                "Leave it out for the default, or set 0 for a teacher that reads every tokenisation."
            )
            raise ConfigError(msg)


@dataclass(frozen=True)
class ExactMatchCredit(AlignedCredit):
    """Keep the tokens that both tokenizers have at the same bytes; drop the rest.

    c_i = log T(b_j) where student token i and teacher token j cover the same bytes. No token answers for another. It
    fails where the lesson lies in text that the two sides tokenise differently, for example numbers that only the
    teacher merges: those tokens learn nothing.

    Reference:
        Liu, Fu, Shen, Jiang, On-policy distillation in model merging (2026), second finding.

    Example:
        >>> from lightning_opd.functional.alignment import align
        >>> alignment = align([(0, 1), (1, 2), (2, 5)], [(0, 2), (2, 5)])
        >>> ExactMatchCredit()(torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -0.25]), alignment)
        (tensor([ 0.0000,  0.0000, -0.2500]), tensor([False, False,  True]))
    """

    @override
    def __call__(
        self,
        student_logprobs: Float[Tensor, " student"],
        teacher_logprobs: Float[Tensor, " teacher"],
        alignment: Alignment,
    ) -> tuple[Float[Tensor, " student"], Bool[Tensor, " student"]]:
        compared, is_aligned = _nothing(student_logprobs, teacher_logprobs)
        if alignment.strict:
            student, teacher = torch.tensor(alignment.strict, device=compared.device).unbind(dim=1)
            compared[student] = teacher_logprobs[teacher].to(compared.dtype)
            is_aligned[student] = True
        return compared, is_aligned


@dataclass(frozen=True)
class SpanCredit(AlignedCredit):
    """Compare the shortest spans of tokens that cover the same bytes: L_T = Σ log T, L_S = Σ log π.

    The log-ratio of a span of n student tokens, L_T − L_S, becomes each token's own (`whole`: the
    score function of the span), is divided into n equal parts (`equal`), or is divided in proportion
    to log π_i (`proportional`). Only over-long spans are dropped. The default: it takes log-probs
    only, and nearly every token learns. The bias: a teacher token can say what does not follow ("1" as
    a token: no digit follows), and the span credits that to the wrong token.

    Args:
        division: How a span's log-ratio is divided among its tokens.
        max_tokens: Spans with more tokens on either side are dropped.

    Reference:
        DPCA, arXiv 2606.09456 (2026): proportional division.

    Example:
        >>> from lightning_opd.functional.alignment import align
        >>> alignment = align([(0, 1), (1, 2), (2, 5)], [(0, 2), (2, 5)])
        >>> compared, _ = SpanCredit()(torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -0.25]), alignment)
        >>> compared - torch.tensor([-1.0, -2.0, -0.5])
        tensor([1.5000, 1.5000, 0.2500])
    """

    division: Literal["whole", "equal", "proportional"] = "whole"
    max_tokens: int = 6

    def __post_init__(self) -> None:
        """Refuse spans of no tokens."""
        if self.max_tokens < 1:
            msg = f"`max_tokens` of a span must be at least 1, got {self.max_tokens}."
            raise ConfigError(msg)

    @override
    def __call__(
        self,
        student_logprobs: Float[Tensor, " student"],
        teacher_logprobs: Float[Tensor, " teacher"],
        alignment: Alignment,
    ) -> tuple[Float[Tensor, " student"], Bool[Tensor, " student"]]:
        compared, is_aligned = _nothing(student_logprobs, teacher_logprobs)
        spans = [(s, t) for s, t in alignment.spans if max(len(s), len(t)) <= self.max_tokens]
        if not spans:
            return compared, is_aligned
        student, student_span = _numbered([s for s, _ in spans], compared.device)
        teacher, teacher_span = _numbered([t for _, t in spans], compared.device)
        own = student_logprobs[student].to(compared.dtype)
        zeros = compared.new_zeros(len(spans))
        teacher_sums = zeros.index_add(0, teacher_span, teacher_logprobs[teacher].to(compared.dtype))[student_span]
        student_sums = zeros.index_add(0, student_span, own)[student_span]
        lengths = zeros.index_add(0, student_span, torch.ones_like(own))[student_span]
        if self.division == "whole":
            credited = teacher_sums - (student_sums - own)
        elif self.division == "equal":
            credited = own + (teacher_sums - student_sums) / lengths
        else:  # a span that the student was sure of has no proportions: equal parts
            is_sure = student_sums == 0
            parts = torch.where(is_sure, 1 / lengths, own / torch.where(is_sure, 1.0, student_sums))
            credited = own + parts * (teacher_sums - student_sums)
        compared[student] = torch.where(lengths == 1, teacher_sums, credited)
        is_aligned[student] = True
        return compared, is_aligned


@dataclass(frozen=True)
class SequenceCredit(AlignedCredit):
    """Give every token the log-ratio of the whole response: log T(y) − log π(y).

    Exact: its expected gradient is that of −KL(π ‖ T) over texts, and its fixed point is π = T as
    text. Its variance grows like that of the full trajectory, so use it for short responses.
    A response is dropped if any of its tokens has no counterpart. Leave log-ratios unclipped.

    Reference:
        Liu, Fu, Shen, Jiang, On-policy distillation in model merging (2026), Theorem 1 (i), on texts.
    """

    @override
    def __call__(
        self,
        student_logprobs: Float[Tensor, " student"],
        teacher_logprobs: Float[Tensor, " teacher"],
        alignment: Alignment,
    ) -> tuple[Float[Tensor, " student"], Bool[Tensor, " student"]]:
        compared, is_aligned = _nothing(student_logprobs, teacher_logprobs)
        num_paired = sum(len(s) for s, _ in alignment.spans), sum(len(t) for _, t in alignment.spans)
        if num_paired != (len(student_logprobs), len(teacher_logprobs)):
            return compared, is_aligned
        student = student_logprobs.to(compared.dtype)
        others = student.sum() - student
        return teacher_logprobs.to(compared.dtype).sum() - others, torch.ones_like(is_aligned)


@dataclass(frozen=True)
class SpliceCredit(AlignedCredit):
    """Score a teacher sequence that was assembled from the student's tokens: a known failure, for diagnosis.

    The teacher tokenises the text of each student token on its own, and the student token gets the sum of
    those log-probs. The teacher was never trained on such sequences and finds them very unlikely, although
    the text is the same. Training with it is refused.

    Reference:
        Liu, Fu, Shen, Jiang, On-policy distillation in model merging (2026), second finding.
    """

    is_spliced: ClassVar[bool] = True

    @override
    def __call__(
        self,
        student_logprobs: Float[Tensor, " student"],
        teacher_logprobs: Float[Tensor, " teacher"],
        alignment: Alignment,
    ) -> tuple[Float[Tensor, " student"], Bool[Tensor, " student"]]:
        longest = max((len(t) for _, t in alignment.spans), default=1)
        return SpanCredit(max_tokens=longest)(student_logprobs, teacher_logprobs, alignment)


def _nothing(student: Tensor, teacher: Tensor) -> tuple[Float[Tensor, " student"], Bool[Tensor, " student"]]:
    """Return zeros in at least float32, and a mask that is False everywhere."""
    zeros = torch.zeros_like(promote(student), dtype=torch.promote_types(promote(student).dtype, teacher.dtype))
    return zeros, torch.zeros_like(student, dtype=torch.bool)


def _numbered(ranges: list[range], device: torch.device) -> tuple[Int[Tensor, " tokens"], Int[Tensor, " tokens"]]:
    """Return the index of every token in a list of ranges, and the number of its range."""
    index = torch.tensor([i for r in ranges for i in r], device=device)
    number = torch.tensor([n for n, r in enumerate(ranges) for _ in r], device=device)
    return index, number
