"""What answers the student in an episode."""

from __future__ import annotations

from abc import ABC, abstractmethod

from lightning_opd.types import Message, Messages


class Environment(ABC):
    """One episode: messages in, messages out."""

    @abstractmethod
    def reset(self) -> Messages:
        """Start the episode and return the messages the student sees first."""

    @abstractmethod
    def step(self, reply: Message) -> Messages:
        """Take the student's reply and return the messages that answer it; empty ends the episode."""

    @abstractmethod
    def reward(self) -> float:
        """Return the reward of the finished episode."""
