"""Scores of a batch by an `AlignedCredit`: the teacher scores its own tokens, which are aligned with the student's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from lightning_opd.functional.alignment import Alignment
from lightning_opd.functional.credit import AlignedCredit
from lightning_opd.interfaces import Teacher
from lightning_opd.teachers.cross_tokenizer.translation import Translator, each_token
from lightning_opd.teachers.cross_tokenizer.views import View, teacher_batch, views_of
from lightning_opd.types import ResponseStates, SampledTokens, Signal, TeacherScores


class AlignedScorer:
    """Score batches in the teacher's own tokens.

    Log-probs reach the student's tokens by the credit. Likeliest tokens and hidden states speak about single tokens:
    they reach only the student tokens that one teacher token matches exactly.

    Args:
        translator: From the student's tokens to the teacher's.
        scorer: Scores the teacher's tokens.
        credit: Brings log-probs of the teacher's tokens onto the student's.
    """

    def __init__(self, translator: Translator, scorer: Teacher, credit: AlignedCredit) -> None:
        """Remember all three."""
        self._translator, self._scorer, self._credit = translator, scorer, credit

    def score(self, batch: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        """Score a batch of rollouts with their trajectories."""
        views = views_of(batch, self._translator, each_token if self._credit.is_spliced else None)
        own = teacher_batch(views, batch, self._translator)
        scores = self._scorer.score(own, signals)
        logprobs, aligned_mask = _credited(batch, self._credit, views, own, scores)
        top_ids, top_logprobs = scores.top_ids, scores.top_logprobs
        if top_ids is not None and top_logprobs is not None and not self._translator.is_identity:
            student_ids = self._student_ids.to(top_ids.device)[top_ids]
            top_ids, top_logprobs = student_ids.clamp(min=0), torch.where(student_ids >= 0, top_logprobs, -torch.inf)
        return TeacherScores(
            logprobs,
            aligned_mask,
            _exactly_matched(top_ids, batch, views, own),
            _exactly_matched(top_logprobs, batch, views, own),
            _matched_states(scores.hidden_states, batch, views, own),
            scores.heads if self._translator.is_identity else (),
            scores.metrics,
        )

    @cached_property
    def _student_ids(self) -> Tensor:
        """The student's id of every token of the teacher, -1 where the student has no such token."""
        pairs = self._translator.shared_tokens()
        return torch.tensor([pairs.get(token_id, -1) for token_id in range(len(self._translator.teacher))])


def _credited(
    batch: SampledTokens, credit: AlignedCredit, views: Sequence[View], own: SampledTokens, scores: TeacherScores
) -> tuple[Tensor, Tensor]:
    """Return what each of the student's tokens is compared with, and which are; row by row, over all its replies."""
    logprobs = torch.zeros_like(batch.rollout_logprobs)
    aligned_mask = torch.zeros_like(batch.response_mask)
    for row, of_row in groupby(enumerate(views), lambda numbered: numbered[1].row):
        columns, token_scores, alignment = batch.token_ids.new_empty(0), scores.logprobs.new_empty(0), Alignment()
        for number, view in of_row:
            theirs = own.response_mask[number]
            num_known = int(scores.aligned_mask[number, theirs].sum())  # the scorer may not know all ids
            alignment = alignment.then(view.alignment.up_to(num_known), len(columns), len(token_scores))
            columns = torch.cat([columns, view.columns])
            token_scores = torch.cat([token_scores, scores.logprobs[number, theirs]])
        compared, is_aligned = credit(batch.rollout_logprobs[row, columns], token_scores, alignment)
        logprobs[row, columns] = compared.to(logprobs.dtype)
        aligned_mask[row, columns] = is_aligned
    return logprobs, aligned_mask


def _exactly_matched(
    x: Tensor | None, batch: SampledTokens, views: Sequence[View], own: SampledTokens
) -> Tensor | None:
    """Bring what the scorer says about single tokens to the student's tokens of the same bytes; 0 elsewhere."""
    if x is None:
        return None
    out = x.new_zeros(*batch.token_ids.shape, x.shape[-1])
    for number, view in enumerate(views):
        if view.alignment.strict:
            ours, theirs = torch.tensor(view.alignment.strict, device=x.device).unbind(dim=1)
            out[view.row, view.columns[ours]] = x[number, own.response_mask[number].nonzero().squeeze(-1)[theirs]]
    return out


def _matched_states(
    states: ResponseStates | None, batch: SampledTokens, views: Sequence[View], own: SampledTokens
) -> ResponseStates | None:
    """Bring the scorer's states to the student's tokens of the same bytes."""

    def matched(index: Tensor) -> Tensor:
        found = _exactly_matched(index[..., None], batch, views, own)
        assert found is not None
        return found.squeeze(-1)

    return None if states is None else states.map(matched)
