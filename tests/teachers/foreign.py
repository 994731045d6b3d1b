"""A teacher that cuts text differently from the student, and windows that it grades."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_opd.data.collate import collate
from lightning_opd.functional.credit import Credit, Strict
from lightning_opd.models import Student, build_student, load_tokenizer
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.rollouts.episodes import run_episodes
from lightning_opd.teachers import RetokenizedTeacher
from lightning_opd.types import RolloutBatch, Sampling, Signal
from tests.world import Letters

CPU = torch.device("cpu")


def foreign_teacher(world: Path, folder: Path, credit: Credit = Strict()) -> RetokenizedTeacher:
    """Return the teacher in a folder, ready to grade the student of `world`."""
    teacher = RetokenizedTeacher(str(folder), credit)
    teacher.introduce(load_tokenizer(str(world / "student")))
    teacher.setup(CPU)
    return teacher


def graded_window(world: Path, teacher: RetokenizedTeacher, num_prompts: int = 16) -> RolloutBatch:
    """Return rollouts of the student of `world`, graded by the teacher."""
    task, tokenizer = Letters(num_prompts, teachers=["math"]), load_tokenizer(str(world / "student"))
    engine, prompts = InProcessEngine(), task.prompts("train")
    engine.sync(build_student(Student(str(world / "student"))), 0)
    sampling = Sampling(max_new_tokens=12, stop_token_ids=(int(tokenizer.eos_token_id),), vocab_size=len(tokenizer))
    rows = list(range(len(prompts)))
    with torch.no_grad():
        trajectories = run_episodes(task, prompts, engine, tokenizer, rows, sampling, 256)
    batch = collate(trajectories, rows, [0] * len(rows), ["math"], 1.0, tokenizer.pad_token_id, torch.float32, CPU)
    scores = teacher.score(batch, frozenset({Signal.LOGPROBS}))
    batch.teacher_logprobs, batch.comparable_mask = scores.logprobs, scores.comparable_mask
    return batch
