"""What the road and the module owe each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import lightning as L  # Lightning's own convention
import torch

from lightning_opd.data.given_responses import GivenResponses
from lightning_opd.interfaces import Objective, OPDCallback, Teacher
from lightning_opd.models import LanguageModel
from lightning_opd.teachers import TeacherPool
from lightning_opd.types import Road, RolloutBatch, TeacherScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Distiller(Protocol):
    """What the road needs of the module: the student, its tokenizer and the teachers."""

    student: torch.nn.Module
    teachers: TeacherPool
    objective: Objective
    reference: Teacher | None
    critic: torch.nn.Module | None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's tokenizer."""

    @property
    def language_model(self) -> LanguageModel:
        """The student's states and head."""

    def score(self, batch: RolloutBatch) -> TeacherScores:
        """Let every teacher grade its own rows."""

    def prepare(self, window: RolloutBatch, num_updates: int) -> None:
        """Store on a graded window what needs all its rows."""


def check_objective(
    trainer: L.Trainer, module: Distiller, updates_per_window: int, given: GivenResponses | None, *, is_exact: bool
) -> None:
    """Let the objective refuse a road on which it would learn something else than it says."""
    callbacks = [c for c in trainer.callbacks if isinstance(c, OPDCallback)]  # type: ignore[attr-defined]  # set by Lightning
    road = Road(
        updates_per_window=updates_per_window,
        draws_from_student=is_exact,
        given_share=0.0 if given is None else given.share,
        has_outcome=any(callback.adds_outcome for callback in callbacks),
        has_reference=module.reference is not None,
        has_critic=module.critic is not None,
        teacher_names=module.teachers.names,
    )
    module.objective.check(road)


def check_shapes(window: RolloutBatch, callback: OPDCallback) -> None:
    """Raise if a callback left something of another shape where the road expects its own."""
    per_token, per_row = window.token_ids.shape, window.rewards.shape
    for name, expected in (("distill_mask", per_token), ("distill_weights", per_row), ("outcome_advantages", per_row)):
        got = getattr(window, name).shape
        if got != expected:
            msg = f"{type(callback).__name__} left `{name}` with shape {tuple(got)}, expected {tuple(expected)}."
            raise ValueError(msg)
