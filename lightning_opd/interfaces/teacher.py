"""What scores the student's tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch

from lightning_opd.types import Prompt, SampledTokens, Sampling, Signal, TeacherScores

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Teacher(ABC):
    """A frozen model that scores every token of its own prompts."""

    @property
    def identity(self) -> Hashable:
        """Equal for teachers that can use one loaded model."""
        return id(self)

    def check_prompt(self, prompt: Prompt) -> None:
        """Refuse a prompt that this teacher could not score, before any weight is loaded; by default none."""

    def check_request(self, signals: frozenset[Signal], sampling: Sampling) -> None:
        """Refuse what this teacher cannot score, before any weight is loaded; by default nothing.

        Args:
            signals: What it will be asked for.
            sampling: How the student's tokens will be drawn.
        """

    @abstractmethod
    def setup(self, device: torch.device, mesh: DeviceMesh | None = None) -> None:
        """Load the model; called once, on every rank."""

    @abstractmethod
    def score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        """Score every token at the batch's temperature; signals that are not asked for may stay None."""

    def close(self) -> None:
        """Release what the teacher holds."""
