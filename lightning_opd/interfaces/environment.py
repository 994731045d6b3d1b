"""What answers the student in an episode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from lightning_opd.types import Message, Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Environment(ABC):
    """One episode: messages in, messages out.

    The environments of a rollout batch take their steps in parallel threads.
    """

    @abstractmethod
    def reset(self) -> Messages:
        """Start the episode and return the messages the student sees first."""

    def read(self, text: str, prompt: str = "", tokenizer: PreTrainedTokenizerBase | None = None) -> Message:
        """Return a reply as the message that `step` takes and that later turns show; by default its text.

        Args:
            text: The reply without its stop token.
            prompt: The end of the text before it, which may have opened a thought.
            tokenizer: The student's, with its chat template.
        """
        return {"role": "assistant", "content": text}

    @abstractmethod
    def step(self, reply: Message) -> Messages:
        """Take the student's reply and return the messages that answer it; empty ends the episode."""

    @abstractmethod
    def reward(self) -> float:
        """Return the reward of the finished episode."""

    @property
    def takes_one_reply(self) -> bool:
        """Whether the first reply is known to end the episode, so that a teacher on a server can score it at once."""
        return False

    @property
    def needs_main_thread(self) -> bool:
        """Whether `step` runs in the main thread, one environment after the other; for what takes no time."""
        return False
