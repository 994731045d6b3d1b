"""What a teacher with another tokenizer reads of each reply of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_opd.functional.alignment import Alignment
from lightning_opd.teachers.cross_tokenizer.translation import Split, Translator
from lightning_opd.tokenization.compatibility import padding_token_id
from lightning_opd.types import SampledTokens, Trajectory, Turn


@dataclass(frozen=True)
class View:
    """What the teacher reads of one reply.

    Args:
        row: Of the trajectory in the batch.
        columns: Columns of the reply's student tokens in that row.
        token_ids: The chat before the reply by the teacher's template, and the reply in its tokens.
        response_mask: True on tokens that stand for something the student generated.
        alignment: Student tokens at `columns` ↔ teacher tokens where `response_mask` holds.
    """

    row: int
    columns: Tensor
    token_ids: list[int]
    response_mask: list[bool]
    alignment: Alignment


def views_of(batch: SampledTokens, translator: Translator, split: Split | None = None) -> list[View]:
    """Return what the teacher reads, one view per reply, row by row.

    Where both sides have the same tokens throughout, a whole episode is one view.

    Args:
        batch: Rollouts with their trajectories.
        translator: From the student's tokens to the teacher's.
        split: See `Translator.reply`.
    """
    views = []
    for row, trajectory in enumerate(batch.trajectories):
        columns = batch.response_mask[row].nonzero().squeeze(-1)
        if translator.is_verbatim:
            kept = batch.attention_mask[row]
            ids, mask = batch.token_ids[row, kept].tolist(), batch.response_mask[row, kept].tolist()
            views.append(View(row, columns, ids, mask, Alignment.identity(len(columns))))
            continue
        for turn, of_turn in replies_of(trajectory, columns):
            prompt_ids = translator.prompt(turn.messages)
            reply = translator.reply(batch.token_ids[row, of_turn].tolist(), split)
            mask = [False] * len(prompt_ids) + reply.response_mask
            views.append(View(row, of_turn, prompt_ids + reply.token_ids, mask, reply.alignment))
    return views


def replies_of(trajectory: Trajectory, columns: Int[Tensor, " tokens"]) -> list[tuple[Turn, Tensor]]:
    """Return each reply of an episode with the columns of its tokens, given the columns of all generated tokens."""
    turns = trajectory.turns or (Turn(trajectory.prompt.messages, 0, len(columns), trajectory.text),)
    lengths = [turn.end - turn.start for turn in turns]
    return list(zip(turns, torch.split(columns, lengths), strict=True))


def teacher_batch(views: Sequence[View], batch: SampledTokens, translator: Translator) -> SampledTokens:
    """Return views as a batch of the teacher's tokens, at the temperature of the student's batch."""
    return SampledTokens.from_sequences(
        [view.token_ids for view in views],
        [view.response_mask for view in views],
        padding_token_id(translator.teacher),
        batch.rollout_logprobs.dtype,
        batch.token_ids.device,
        temperature=batch.temperature,
    )
