"""A rule about how a reply must look."""

from __future__ import annotations

from abc import ABC, abstractmethod

from lightning_opd.types import Trajectory


class FormatRule(ABC):
    """One named rule about how a reply must look; decided on token ids and text only.

    In an episode of several turns it is asked once per reply, and shown the episode so far.
    """

    @property
    def name(self) -> str:
        """Name under which violations are counted."""
        return type(self).__name__

    @abstractmethod
    def is_broken(self, trajectory: Trajectory) -> bool:
        """Return whether the trajectory's last reply, `trajectory.text`, breaks this rule."""
