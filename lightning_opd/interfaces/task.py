"""What is asked of the student, and how its reply is rewarded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from typing_extensions import override

from lightning_opd.errors import UnsupportedError
from lightning_opd.interfaces.environment import Environment
from lightning_opd.interfaces.format_rule import FormatRule
from lightning_opd.interfaces.reward_function import finite_reward
from lightning_opd.types import Message, Messages, Prompt, Split


class Task(ABC):
    """A data set of environments with a verifiable outcome.

    A single-turn task defines `prompts` and `reward`; a task with turns overrides `environment`.
    """

    @abstractmethod
    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Return the prompts of a split, always in the same order."""

    def reward(self, prompt: Prompt, text: str) -> float:
        """Reward the student's whole reply (stop token cut); usually 0 or 1."""
        msg = f"{type(self).__name__} must override `reward` (one turn) or `environment` (several)."
        raise UnsupportedError(msg)

    def environment(self, prompt: Prompt) -> Environment:
        """Return the episode that belongs to a prompt; by default one turn, rewarded by `reward`."""
        return SingleTurn(self, prompt)

    def format_rules(self) -> Sequence[FormatRule]:
        """Return the rules that every response is checked against; none by default."""
        return ()

    def demonstration(self, prompt: Prompt) -> str | None:
        """Return a right reply to a prompt, or None where none is known; by default its `response` column."""
        response = prompt.columns.get("response")
        return None if response is None else str(response)

    def demonstration_message(self, prompt: Prompt) -> Message | None:
        """Return a right reply as a message, with its `tool_calls` where it has some; by default `demonstration`."""
        text = self.demonstration(prompt)
        return None if text is None else {"role": "assistant", "content": text}

    def demonstrations(self, split: Split, num_examples: int, seed: int) -> Sequence[Messages]:
        """Return example chats that end with an assistant message, for supervised training."""
        msg = f"{type(self).__name__} has no demonstrations; override `demonstrations` to train on it supervised."
        raise UnsupportedError(msg)


class SingleTurn(Environment):
    """An episode of one reply, rewarded by the task's `reward`."""

    def __init__(self, task: Task, prompt: Prompt) -> None:
        """Bind the episode to its prompt."""
        self._task, self._prompt, self._reply = task, prompt, ""

    @override
    def reset(self) -> Messages:
        return self._prompt.messages

    @property
    @override
    def needs_main_thread(self) -> bool:
        return True  # nothing takes time

    @property
    @override
    def takes_one_reply(self) -> bool:
        return True

    @override
    def step(self, reply: Message) -> Messages:
        self._reply = str(reply["content"])
        return ()

    @override
    def reward(self) -> float:
        value: object = self._task.reward(self._prompt, self._reply)
        return finite_reward(value, f"`{type(self._task).__name__}.reward`", self._prompt.key)
