"""What is lost between two tokenizers, and what the seed's failure would look like on the same texts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_opd.teachers.cross_tokenizer.teacher import CrossTokenizerTeacher, View
from lightning_opd.types import SampledTokens, Signal

NUM_WORST = 10


@dataclass(frozen=True)
class ScoredToken:
    """One token of the student and what it was compared with.

    Args:
        row: Trajectory in the batch.
        log_ratio: Credited log-ratio in nats.
        student_pieces: The student's tokens of the same bytes.
        teacher_pieces: The teacher's.
    """

    row: int
    log_ratio: float
    student_pieces: tuple[str, ...]
    teacher_pieces: tuple[str, ...]


@dataclass(frozen=True)
class CrossTokenizerReport:
    """How well a teacher of another tokenizer can score a batch.

    Args:
        kept_tokens: Fraction of the response tokens that get a score.
        dropped_logprob: Fraction of Σ|log π| on the tokens that do not.
        role_log_ratios: Mean log-ratio in nats of each kind of control token that occurs.
        dominant_token: Token id with the largest fraction of Σ|r|, as text.
        dominant_fraction: That fraction; above .2 one token rules the gradient.
        worst: The tokens of largest |r|.
        native: Log-prob of the texts in the teacher's own tokens, nats per response.
        spliced: The same texts assembled from the student's pieces.
        per_character: The same texts spelt character by character.
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
        teacher: Introduced and set up.
        batch: Rollouts of the student with their trajectories; needs no scores.
    """
    scores = teacher.score(batch, frozenset({Signal.LOGPROBS}))
    log_ratio = torch.where(scores.aligned_mask, scores.logprobs - batch.rollout_logprobs, 0.0)
    views = teacher.views(batch)
    token, fraction = _dominant(teacher, batch, log_ratio)
    return CrossTokenizerReport(
        kept_tokens=_quotient(*scores.metrics["kept_tokens"]),
        dropped_logprob=_quotient(*scores.metrics["dropped_logprob"]),
        role_log_ratios={
            name.removeprefix("role_log_ratio_"): _quotient(*pair)
            for name, pair in scores.metrics.items()
            if name.startswith("role_log_ratio_") and pair[1] > 0
        },
        dominant_token=token,
        dominant_fraction=fraction,
        worst=tuple(_worst(teacher, batch, views, log_ratio)),
        native=_nats_per_response(teacher.score_views(views, batch), batch),
        spliced=_nats_per_response(teacher.score_views(teacher.views(batch, lambda pieces: pieces), batch), batch),
        per_character=_nats_per_response(teacher.score_views(teacher.views(batch, _characters), batch), batch),
    )


def _characters(pieces: list[bytes]) -> list[bytes]:
    return [character.encode() for character in b"".join(pieces).decode(errors="replace")]


def _nats_per_response(token_scores: list[Tensor], batch: SampledTokens) -> float:
    return float(torch.cat(token_scores).sum()) / max(1, len(batch))


def _quotient(value: Tensor, count: Tensor) -> float:
    return float(value / count.clamp(min=1e-30))


def _dominant(teacher: CrossTokenizerTeacher, batch: SampledTokens, log_ratio: Tensor) -> tuple[str, float]:
    """Return the token id with the largest fraction of Σ|r|, as text, and the fraction."""
    sizes: Counter[int] = Counter()
    for token_id, size in zip(batch.token_ids.flatten().tolist(), log_ratio.abs().flatten().tolist(), strict=True):
        sizes[token_id] += size
    token_id, size = sizes.most_common(1)[0]
    return str(teacher.translator.student.decode([token_id])), size / max(sizes.total(), 1e-30)


def _worst(
    teacher: CrossTokenizerTeacher, batch: SampledTokens, views: list[View], log_ratio: Tensor
) -> list[ScoredToken]:
    """Return the tokens of largest |r| with the run of tokens on either side that they belong to."""
    ours, theirs = teacher.translator.student, teacher.translator.teacher
    found = []
    for view in views:
        columns = view.columns.tolist()
        reply = [i for i, counts in zip(view.token_ids, view.response_mask, strict=True) if counts]
        for student, other in view.alignment.spans:
            own = batch.token_ids[view.row, view.columns[student.start : student.stop]].tolist()
            pieces = tuple(str(ours.decode([i])) for i in own), tuple(str(theirs.decode([reply[j]])) for j in other)
            found += [ScoredToken(view.row, float(log_ratio[view.row, columns[i]]), *pieces) for i in student]
    return sorted(found, key=lambda token: -abs(token.log_ratio))[:NUM_WORST]
