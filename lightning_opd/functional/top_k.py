"""Divergences on a few likely tokens: which tokens, and how the mass on all others counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.divergences import Divergence
from lightning_opd.functional.fused import Fused, Part, Tokens, fused
from lightning_opd.functional.heads import HeadStates
from lightning_opd.functional.logprobs import log_softmax, promote

ABSENT_LOGPROB = -1e4
"""Stands in nats for a token that is not in the support: no mass on either side, and no NaN."""


@dataclass(frozen=True)
class TopK(Divergence):
    """D between π and T coarsened to a support S of likely tokens, in nats.

    With `tail`, all other tokens are one more outcome that holds the rest of the mass on both
    sides: a lower bound of the full divergence, 0 exactly if π = T on S; how the rest is spread stays
    open. With `renormalise`, both are divided by their mass on S: 0 if π ∝ T on S. The mass off S is then
    free, so the support should cover nearly all mass. π = T is a fixed point of both. The raw sum
    Σ_S π log(π/T) is not offered: its gradient keeps a "+1" that drives mass off S even at π = T.
    S is chosen without gradient. Where the teacher's full distribution is at hand, compare
    the full vocabulary instead: `DistributionMatching` works in chunks.

    Args:
        divergence: Compares the coarsened distributions.
        k: Likeliest tokens per side, at least 1; a vocabulary of at most k is compared in full.
        support: Whose likeliest tokens. `student` covers what the student does, `teacher` what the
            teacher does (the only one that a top-k server can answer), `union` both; `intersection` is the
            weakest, with `renormalise` it is 0 where the two sides have at most one token in common.
        correction: How the other tokens' mass counts.

    Reference:
        Fu et al., Revisiting on-policy distillation: empirical failure modes and simple fixes, arXiv 2603.25562
        (2026): teacher support, k = 32.

    Raises:
        ValueError: The correction or the support is unknown, or k is not positive.
    """

    divergence: Divergence
    k: int
    support: str = "teacher"
    correction: str = "tail"

    def __post_init__(self) -> None:
        """Refuse the raw form, and a support without tokens."""
        _check(self.correction)
        if self.support not in {"student", "teacher", "union", "intersection"}:
            msg = f"`support` must be student, teacher, union or intersection, got {self.support!r}."
            raise ConfigError(msg)
        if self.k < 1:
            msg = f"`k` must be at least 1, got {self.k}."
            raise ConfigError(msg)

    @override
    def __call__(
        self, student_logits: Float[Tensor, "*shape vocab"], teacher_logits: Float[Tensor, "*shape vocab"]
    ) -> Float[Tensor, "*shape"]:
        student, teacher = log_softmax(student_logits), log_softmax(teacher_logits)
        ids, present_mask = self._support(student.detach(), teacher.detach())
        return self.divergence(
            _coarsened(student, ids, present_mask, self.correction),
            _coarsened(teacher, ids, present_mask, self.correction),
        )

    @property
    @override
    def metric_names(self) -> tuple[str, ...]:
        return ("top_k_overlap", "student_mass", "teacher_mass")

    @override
    def with_gradient(
        self,
        student_logits: Float[Tensor, "positions vocab"],
        teacher_logits: Float[Tensor, "positions vocab"],
        *,
        gradient: bool,
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, "positions metrics"]]:
        student, teacher = log_softmax(student_logits), log_softmax(teacher_logits)
        student_ids, teacher_ids = _top(student, self.k), _top(teacher, self.k)
        ids, present_mask = self._chosen(student_ids, teacher_ids)
        statistics = torch.stack(_agreement(student, teacher, student_ids, teacher_ids), -1)
        theirs = _coarsened(teacher, ids, present_mask, self.correction)
        values = _from_coarse(self, student, ids, present_mask, theirs, student_logits if gradient else None)
        return values, statistics

    def from_top_k(
        self,
        student: HeadStates,
        top_ids: Int[Tensor, "positions k"],
        top_logprobs: Float[Tensor, "positions k"],
        weights: Float[Tensor, " positions"] | None = None,
        tokens: Tokens | None = None,
    ) -> Fused:
        """Return `top_k_divergence` at every position straight from the student's states, a chunk at a time.

        Args:
            student: The states and head to differentiate.
            top_ids: The teacher's likeliest tokens, each at most once.
            top_logprobs: Their log-probs in nats; −inf marks a missing entry.
            weights: As for `from_states`.
            tokens: As for `from_states`.
        """

        def function(logits: Tensor, ids: Tensor, logprobs: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor]:
            ids, present_mask, theirs = _served(ids, logprobs, self.correction)
            into = logits if gradient else None
            return _from_coarse(self, log_softmax(logits), ids, present_mask, theirs, into), logits[:, :0]

        whole = (function, lambda positions: (top_ids[positions], top_logprobs[positions]))
        part = Part(len(top_ids), student.head.vocab_size, lambda: whole)
        return fused(student, [part], weights, tokens=tokens)

    def _support(
        self, student: Float[Tensor, "*shape vocab"], teacher: Float[Tensor, "*shape vocab"]
    ) -> tuple[Int[Tensor, "*shape entries"], Bool[Tensor, "*shape entries"]]:
        """Return token ids, and which of them belong to the support."""
        needs_student, needs_teacher = self.support != "teacher", self.support != "student"
        return self._chosen(
            _top(student, self.k) if needs_student else None, _top(teacher, self.k) if needs_teacher else None
        )

    def _chosen(
        self, student_ids: Int[Tensor, "*shape k"] | None, teacher_ids: Int[Tensor, "*shape k"] | None
    ) -> tuple[Int[Tensor, "*shape entries"], Bool[Tensor, "*shape entries"]]:
        """Return token ids, and which of them belong to the support, from both sides' likeliest tokens."""
        own = student_ids if self.support == "student" else teacher_ids
        assert own is not None
        if self.support in {"student", "teacher"}:
            return own, torch.ones_like(own, dtype=torch.bool)
        assert student_ids is not None
        assert teacher_ids is not None
        is_shared = _is_in(student_ids, teacher_ids)
        if self.support == "intersection":
            return student_ids, is_shared
        everything = torch.ones_like(teacher_ids, dtype=torch.bool)
        return torch.cat([teacher_ids, student_ids], -1), torch.cat([everything, ~is_shared], -1)


def top_k_divergence(
    divergence: Divergence,
    student_logits: Float[Tensor, "*shape vocab"],
    top_ids: Int[Tensor, "*shape k"],
    top_logprobs: Float[Tensor, "*shape k"],
    correction: str = "tail",
) -> Float[Tensor, "*shape"]:
    """Return `TopK` with teacher support for a teacher that returns only its likeliest tokens, in nats.

    Args:
        divergence: Compares the coarsened distributions.
        student_logits: Over the whole vocabulary, with gradient.
        top_ids: The teacher's likeliest tokens, each at most once.
        top_logprobs: Their log-probs in nats under the teacher's whole distribution; −inf marks a
            missing entry.
        correction: How the other tokens' mass counts. Mass below the precision of the
            log-probs counts as that precision.

    Raises:
        ValueError: The correction is unknown.
    """
    _check(correction)
    ids, present_mask, teacher = _served(top_ids, top_logprobs, correction)
    return divergence(_coarsened(log_softmax(student_logits), ids, present_mask, correction), teacher)


class SupportStatistics(NamedTuple):
    """How well two sets of likeliest tokens agree, each between 0 and 1 per position."""

    overlap: Tensor
    """Fraction of the k tokens that are in both sets."""
    student_mass: Tensor
    """The student's probability of the teacher's k tokens."""
    teacher_mass: Tensor
    """The teacher's probability of the student's k tokens."""


@torch.no_grad()
def support_statistics(
    student_logits: Float[Tensor, "*shape vocab"], teacher_logits: Float[Tensor, "*shape vocab"], k: int
) -> SupportStatistics:
    """Return the overlap of both sides' k likeliest tokens, and the mass each side puts on the other's."""
    student, teacher = log_softmax(student_logits), log_softmax(teacher_logits)
    return _agreement(student, teacher, _top(student, k), _top(teacher, k))


def _agreement(
    student: Float[Tensor, "*shape vocab"],
    teacher: Float[Tensor, "*shape vocab"],
    student_ids: Int[Tensor, "*shape k"],
    teacher_ids: Int[Tensor, "*shape k"],
) -> SupportStatistics:
    return SupportStatistics(
        _is_in(student_ids, teacher_ids).to(student.dtype).mean(-1),
        student.gather(-1, teacher_ids).exp().sum(-1),
        teacher.gather(-1, student_ids).exp().sum(-1),
    )


def _served(
    top_ids: Int[Tensor, "*shape k"], top_logprobs: Float[Tensor, "*shape k"], correction: str
) -> tuple[Int[Tensor, "*shape k"], Bool[Tensor, "*shape k"], Float[Tensor, "*shape outcomes"]]:
    """Return ids, which of them are there, and the coarsened log-probs of a teacher that returns only these."""
    present_mask = top_logprobs != -torch.inf  # NaN is not missing: it must be seen
    teacher = torch.where(present_mask, promote(top_logprobs), ABSENT_LOGPROB).detach()
    if correction == "tail":
        precision = torch.finfo(teacher.dtype).eps
        rest = (-torch.expm1(torch.logsumexp(teacher, -1, keepdim=True))).clamp(min=precision)
        teacher = torch.cat([teacher, rest.log()], -1)
    return torch.where(present_mask, top_ids, 0), present_mask, teacher


def _check(correction: str) -> None:
    if correction not in {"tail", "renormalise"}:
        msg = (
            f"`correction` must be tail or renormalise, got {correction!r}. The raw sum Σ_S π log(π/T) is not offered: "
            'its gradient Σ_S π (log(π/T) + 1) ∇log π keeps a "+1" that drives mass off S even where π = T.'
        )
        raise ConfigError(msg)


def _top(logprobs: Float[Tensor, "*shape vocab"], k: int) -> Int[Tensor, "*shape k"]:
    return logprobs.topk(min(k, logprobs.shape[-1]), -1).indices


def _is_in(ids: Int[Tensor, "*shape n"], others: Int[Tensor, "*shape m"]) -> Bool[Tensor, "*shape n"]:
    return (ids[..., :, None] == others[..., None, :]).any(-1)


def _coarsened(
    logprobs: Float[Tensor, "*shape vocab"],
    ids: Int[Tensor, "*shape entries"],
    present_mask: Bool[Tensor, "*shape entries"],
    correction: str,
) -> Float[Tensor, "*shape outcomes"]:
    """Return the log-probs of the support, with the rest as a last outcome under `tail`; unnormalised otherwise."""
    chosen = logprobs.gather(-1, ids)
    chosen = torch.where(present_mask & (chosen != -torch.inf), chosen, ABSENT_LOGPROB)
    if correction == "renormalise":
        return chosen  # a divergence takes logits, and so normalises
    in_support = torch.zeros_like(logprobs, dtype=torch.int8).scatter_add(-1, ids, present_mask.to(torch.int8)) > 0
    rest = torch.where(in_support | (logprobs == -torch.inf), ABSENT_LOGPROB, logprobs)
    return torch.cat([chosen, torch.logsumexp(rest, -1, keepdim=True)], -1)


def _from_coarse(
    top_k: TopK,
    student: Float[Tensor, "positions vocab"],
    ids: Int[Tensor, "positions entries"],
    present_mask: Bool[Tensor, "positions entries"],
    teacher: Float[Tensor, "positions outcomes"],
    into: Float[Tensor, "positions vocab"] | None,
) -> Float[Tensor, " positions"]:
    """Return the divergence of coarsened distributions; `into` becomes its derivative in the student's logits.

    Args:
        top_k: The divergence, and how the rest counts.
        student: Log-probs of the whole vocabulary; overwritten where a derivative is asked for.
        ids: The support's tokens.
        present_mask: Which of them belong to the support.
        teacher: Coarsened log-probs.
        into: Memory for the derivative, or None.
    """
    coarse = _coarsened(student, ids, present_mask, top_k.correction).requires_grad_(into is not None)
    with torch.set_grad_enabled(into is not None):
        values = top_k.divergence(coarse, teacher)
    if into is None:
        return values
    (slope,) = torch.autograd.grad(values, coarse, torch.ones_like(values))
    num = ids.shape[-1]
    chosen = torch.where(present_mask & (student.gather(-1, ids) != -torch.inf), slope[:, :num], 0.0)
    torch.exp(student, out=into).mul_(-(chosen.sum(-1, keepdim=True) + slope[:, num:].sum(-1, keepdim=True)))
    if top_k.correction == "tail":  # the rest's mass is spread as it was: derivative p(a) / p(rest)
        everywhere = student.gather(-1, ids)
        outside = student.scatter_reduce_(-1, ids, torch.where(present_mask, -torch.inf, everywhere), "amin")
        rest = coarse.detach()[:, num:]
        into.addcmul_(outside.sub_(rest).exp_(), slope[:, num:].expand_as(into))
    into.scatter_add_(-1, ids, chosen)
    return values.detach()
