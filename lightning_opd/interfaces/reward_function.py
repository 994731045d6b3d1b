"""A reward beside the task's own."""

from __future__ import annotations

from abc import ABC, abstractmethod

from lightning_opd.types import Trajectory


class RewardFunction(ABC):
    """Rewards a finished episode, beside the task's own outcome."""

    @abstractmethod
    def __call__(self, trajectory: Trajectory) -> float:
        """Return the reward."""
