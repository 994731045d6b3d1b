"""A teacher that splits text differently from the student, and rollout batches that it scores."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_opd.functional.credit import Credit, ExactMatchCredit
from lightning_opd.models import load_tokenizer
from lightning_opd.teachers import CrossTokenizerTeacher
from lightning_opd.tokenization.chat import render_prompt
from lightning_opd.types import Prompt, RolloutBatch, Signal, Trajectory
from tests.world import collate

CPU = torch.device("cpu")
REPLIES = (
    "<think>7+8=15 carry</think>xyz",
    'an answer: {"name": "calc", "arguments": {"result": "75"}}',
    "",
    "é😀  \n\nassistant",
    "result result calculator",
)


def foreign_teacher(world: Path, folder: Path, credit: Credit = ExactMatchCredit()) -> CrossTokenizerTeacher:
    """Return the teacher in a folder, ready to score the student of `world`."""
    teacher = CrossTokenizerTeacher(str(folder), credit)
    teacher.set_student_tokenizer(load_tokenizer(str(world / "student")))
    teacher.setup(CPU)
    return teacher


def scored_batch(
    world: Path, teacher: CrossTokenizerTeacher, replies: tuple[str, ...] = REPLIES, *, has_end: bool = True
) -> RolloutBatch:
    """Return replies in the tokens of the student of `world`, with random log-probs, scored by the teacher."""
    tokenizer, trajectories = load_tokenizer(str(world / "student")), []
    for reply in replies:
        prompt = Prompt(({"role": "user", "content": f"Question {len(reply)}"},), reply, "math", "math")
        head = render_prompt(tokenizer, prompt.messages)
        tail = tokenizer.encode(reply) + [int(tokenizer.eos_token_id)] * has_end
        logprobs = (0.0,) * len(head) + tuple((-torch.rand(len(tail)) * 3).tolist())
        mask = (False,) * len(head) + (True,) * len(tail)
        trajectories.append(Trajectory(prompt, (*head, *tail), mask, logprobs, reply, is_truncated=not has_end))
    rows = list(range(len(replies)))
    batch = collate(trajectories, rows, [0] * len(rows), ["math"], 1.0, tokenizer.pad_token_id, torch.float32, CPU)
    scores = teacher.score(batch, frozenset({Signal.LOGPROBS}))
    batch.teacher_logprobs, batch.aligned_mask = scores.logprobs, scores.aligned_mask
    return batch
