"""What a module hands to the data module that produces its rollouts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lightning_opd.interfaces import Objective, StudentForward, Teacher
from lightning_opd.models import LanguageModel
from lightning_opd.teachers import TeacherPool
from lightning_opd.types import Prompt, RolloutBatch, Sampling, Signal, Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Learner:
    """A student, its teachers, and what turns their scores into a loss.

    Args:
        tokenizer: The student's.
        stop_token_ids: Tokens that end its responses.
        max_length: Longest sequence in tokens that it has positions for, as its configuration says.
        load_student: Returns the student with its adapter; there from `configure_model` on.
        load_language_model: Returns the student's states and head.
        forward_student: Runs the student over rows, as the training step does.
        teachers: By name; loaded from `configure_model` on.
        objective: Says which signals it needs, and prepares a rollout batch.
        reference: Model whose log-probs some log-ratio transforms start from, or None.
        value: Maps the student's states to V, where a critic learns it, or None.
        more_signals: What hooks of the module read of the teachers' scores, beside what the objective asks for.
    """

    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...]
    max_length: int
    load_student: Callable[[], nn.Module]
    load_language_model: Callable[[], LanguageModel]
    forward_student: Callable[[RolloutBatch], StudentForward]
    teachers: TeacherPool
    objective: Objective
    reference: Teacher | None = None
    value: Callable[[Tensor], Tensor] | None = None
    more_signals: frozenset[Signal] = frozenset()

    @property
    def signals(self) -> frozenset[Signal]:
        """What every teacher must answer in training."""
        return self.objective.signals | self.more_signals


@dataclass(frozen=True)
class RolloutPlan:
    """What a run will do, known before its first rollout batch.

    Args:
        learner: The student, its teachers and the objective.
        splits: Name → the prompts that are used.
        prompts_per_batch: Over all processes.
        samples_per_prompt: Sibling rollouts per prompt.
        updates_per_batch: Optimiser steps per rollout batch.
        sampling: With the stop tokens filled in.
    """

    learner: Learner
    splits: Mapping[Split, Sequence[Prompt]]
    prompts_per_batch: int
    samples_per_prompt: int
    updates_per_batch: int
    sampling: Sampling


class RolloutProducer(ABC):
    """A data module that produces the rollouts of a learner.

    Attributes:
        updates_per_batch: Optimiser steps per rollout batch.
    """

    updates_per_batch: int

    @abstractmethod
    def connect(self, learner: Learner) -> tuple[int, ...]:
        """Take the learner, and return the tokens that end its responses here.

        Called by its module in `setup`, before any weight is loaded.
        """

    @abstractmethod
    def plan(self) -> RolloutPlan:
        """Return what the run will do; there after `connect`."""
