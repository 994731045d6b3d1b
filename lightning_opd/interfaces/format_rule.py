"""A rule about how a reply must look."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from lightning_opd.types import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class FormatRule(ABC):
    """One named rule about how a reply must look; decided on token ids and text only.

    In an episode of several turns it is asked once per reply, and shown the episode so far.
    """

    @property
    def name(self) -> str:
        """Name under which violations are counted."""
        return type(self).__name__

    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> FormatRule:
        """Return the rule for a student, of the same name; by default the rule itself.

        Args:
            tokenizer: The student's, whose chat template has its own tags and control tokens.
        """
        return self

    @abstractmethod
    def is_broken(self, trajectory: Trajectory) -> bool:
        """Return whether the trajectory's last reply, `trajectory.text`, breaks this rule."""
