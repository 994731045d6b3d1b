"""What the training step and the module owe each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import lightning as L  # Lightning's own convention
import torch

from lightning_opd.data.off_policy import OffPolicyResponses
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Objective, OPDCallback, Teacher
from lightning_opd.models import LanguageModel
from lightning_opd.teachers import TeacherPool
from lightning_opd.types import RolloutBatch, RunSettings, TeacherScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Distiller(Protocol):
    """What the training step needs of the module: the student, its tokenizer and the teachers."""

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
        """Let every teacher score its own rows."""

    def prepare(self, rollouts: RolloutBatch, num_updates: int) -> None:
        """Store on a scored rollout batch what needs all its rows."""


def check_objective(
    trainer: L.Trainer, module: Distiller, updates_per_batch: int, given: OffPolicyResponses | None, *, is_exact: bool
) -> None:
    """Let the objective refuse run settings on which it would learn something else than it says."""
    callbacks = [c for c in trainer.callbacks if isinstance(c, OPDCallback)]  # type: ignore[attr-defined]  # set by Lightning
    settings = RunSettings(
        updates_per_batch=updates_per_batch,
        draws_from_student=is_exact,
        off_policy_fraction=0.0 if given is None else given.fraction,
        has_outcome=any(callback.adds_outcome for callback in callbacks),
        has_reference=module.reference is not None,
        has_critic=module.critic is not None,
        teacher_names=module.teachers.names,
    )
    module.objective.check(settings)


def check_shapes(rollouts: RolloutBatch, callback: OPDCallback) -> None:
    """Raise if a callback left something of another shape where the training step expects its own."""
    per_token, per_row = rollouts.token_ids.shape, rollouts.rewards.shape
    for name, expected in (("distill_mask", per_token), ("distill_weights", per_row), ("outcome_advantages", per_row)):
        got = getattr(rollouts, name).shape
        if got != expected:
            msg = f"{type(callback).__name__} left `{name}` with shape {tuple(got)}, expected {tuple(expected)}."
            raise ConfigError(msg)
