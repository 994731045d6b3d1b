"""What is lost between two tokenizers, and how a teacher scores the same texts in assembled tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_opd.teachers.cross_tokenizer.metrics import dominant_token
from lightning_opd.teachers.cross_tokenizer.teacher import CrossTokenizerTeacher
from lightning_opd.teachers.cross_tokenizer.translation import Split, each_token
from lightning_opd.teachers.cross_tokenizer.views import View, teacher_batch, views_of
from lightning_opd.types import SampledTokens, Signal

NUM_WORST = 10
"""Tokens that a report shows."""


@dataclass(frozen=True)
class ScoredToken:
    """One token of the student and what it was compared with.

    Args:
        row: Trajectory in the batch.
        log_ratio: Its log-ratio in nats.
        student_tokens: The student's tokens of the shortest span of common bytes around it.
        teacher_tokens: The teacher's.
    """

    row: int
    log_ratio: float
    student_tokens: tuple[str, ...]
    teacher_tokens: tuple[str, ...]


@dataclass(frozen=True)
class CrossTokenizerReport:
    """How well a teacher of another tokenizer can score a batch.

    Args:
        kept_tokens: Fraction of the response tokens that get a score.
        dropped_logprob: Fraction of Σ|log π| on the tokens that do not.
        role_log_ratios: Mean log-ratio in nats of each kind of control token that occurs.
        dominant_token: The token with the largest fraction of Σ|log-ratio|, as text; empty if the sum is 0.
        dominant_fraction: That fraction; above .2 one token rules the gradient.
        worst: The tokens of largest |log-ratio|.
        native: Log-prob of the texts in the teacher's own tokens, nats per response.
        spliced: The same texts assembled from the student's tokens, each tokenised by the teacher on its own.
        per_character: The same texts tokenised character by character.
    """

    kept_tokens: float
    dropped_logprob: float
    role_log_ratios: dict[str, float]
    dominant_token: str
    dominant_fraction: float
    worst: tuple[ScoredToken, ...]
    native: float
    spliced: float
    per_character: float


def cross_tokenizer_report(teacher: CrossTokenizerTeacher, batch: SampledTokens) -> CrossTokenizerReport:
    """Score a batch and say what re-encoding cost.

    Args:
        teacher: Knows the student's tokenizer, and is set up.
        batch: Rollouts of the student with their trajectories; needs no scores.
    """
    scores = teacher.score(batch, frozenset({Signal.LOGPROBS}))
    log_ratio = torch.where(scores.aligned_mask, scores.logprobs - batch.rollout_logprobs, 0.0)
    token_id, fraction = dominant_token(batch.token_ids, log_ratio, scores.aligned_mask) or (None, 0.0)
    return CrossTokenizerReport(
        kept_tokens=_quotient(*scores.metrics["kept_tokens"]),
        dropped_logprob=_quotient(*scores.metrics["dropped_logprob"]),
        role_log_ratios={
            name.removeprefix("role_log_ratio_"): _quotient(*pair)
            for name, pair in scores.metrics.items()
            if name.startswith("role_log_ratio_") and pair[1] > 0
        },
        dominant_token="" if token_id is None else str(teacher.translator.student.decode([token_id])),
        dominant_fraction=float(fraction),
        worst=tuple(_worst(teacher, batch, views_of(batch, teacher.translator), log_ratio)),
        native=_nats_per_response(teacher, batch),
        spliced=_nats_per_response(teacher, batch, each_token),
        per_character=_nats_per_response(teacher, batch, _characters),
    )


def score_views(teacher: CrossTokenizerTeacher, batch: SampledTokens, views: Sequence[View]) -> list[Tensor]:
    """Return the log-probs (nats) of the teacher's response tokens, view by view."""
    own = teacher_batch(views, batch, teacher.translator)
    scores = teacher.scorer.score(own, frozenset({Signal.LOGPROBS}))
    return [scores.logprobs[row][mask] for row, mask in enumerate(own.response_mask)]


def _characters(token_bytes: list[bytes]) -> list[bytes]:
    return [character.encode() for character in b"".join(token_bytes).decode(errors="replace")]


def _nats_per_response(teacher: CrossTokenizerTeacher, batch: SampledTokens, split: Split | None = None) -> float:
    token_scores = score_views(teacher, batch, views_of(batch, teacher.translator, split))
    return float(torch.cat(token_scores).sum()) / max(1, len(batch))


def _quotient(value: Tensor, count: Tensor) -> float:
    return float(value / count.clamp(min=1e-30))


def _worst(
    teacher: CrossTokenizerTeacher, batch: SampledTokens, views: Sequence[View], log_ratio: Tensor
) -> list[ScoredToken]:
    """Return the tokens of largest |log-ratio| with the span of tokens on either side that they belong to."""
    student, theirs = teacher.translator.student, teacher.translator.teacher
    found = []
    for view in views:
        columns = view.columns.tolist()
        reply = [i for i, counts in zip(view.token_ids, view.response_mask, strict=True) if counts]
        for ours, others in view.alignment.spans:
            own = batch.token_ids[view.row, view.columns[ours.start : ours.stop]].tolist()
            both = tuple(str(student.decode([i])) for i in own), tuple(str(theirs.decode([reply[j]])) for j in others)
            found += [ScoredToken(view.row, float(log_ratio[view.row, columns[i]]), *both) for i in ours]
    return sorted(found, key=lambda token: -abs(token.log_ratio))[:NUM_WORST]
