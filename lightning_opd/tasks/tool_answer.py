"""The base of the tiny tasks of one turn: think, then report the result in one tool call."""

from __future__ import annotations

import json
import random
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import ClassVar, Literal

from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import FormatRule, Split, Task
from lightning_opd.tasks.format_rules import (
    TextAfterFinalTag,
    ThinkOnce,
    Truncated,
    UnbalancedTags,
    UnknownTool,
    UnparsableToolCall,
)
from lightning_opd.tasks.splits import in_split
from lightning_opd.tokenization.thoughts import THINK
from lightning_opd.tokenization.tool_calls import CLOSE, OPEN, TaggedJson, only_call
from lightning_opd.types import Messages, Prompt

Agent = Literal["expert", "sloppy"]
SLIP_FRACTION, ECHO_FRACTION = 0.65, 0.15
"""Fractions of what a sloppy agent does if it is not right on purpose; the rest are slips in a malformed call."""


class ToolAnswer(Task):
    """A question whose answer is reported as `<think>…</think><tool_call>{"name": …}</tool_call>`.

    The reward is 1 if the reply makes exactly one call, of the task's tool, with the right result.
    """

    tool: ClassVar[str]

    def __init__(self, agent: Agent, sloppy_right_fraction: float) -> None:
        """Check the demonstrator."""
        if agent not in ("expert", "sloppy"):
            msg = f"`agent` must be 'expert' or 'sloppy', got {agent!r}."
            raise ConfigError(msg)
        if not 0 <= sloppy_right_fraction <= 1:
            msg = f"`sloppy_right_fraction` is a fraction between 0 and 1, got {sloppy_right_fraction}."
            raise ConfigError(msg)
        self.agent, self.sloppy_right_fraction = agent, sloppy_right_fraction
        self._split = cache(lambda split: in_split(self.questions(), split))

    @abstractmethod
    def questions(self) -> Sequence[Prompt]:
        """Return every question of every split."""

    @abstractmethod
    def thoughts(self, prompt: Prompt) -> tuple[str, str]:
        """Return the right thoughts and the result they lead to."""

    @abstractmethod
    def slip(self, prompt: Prompt) -> tuple[str, str]:
        """Return thoughts and result of the typical slip; easy questions are right in spite of it."""

    @abstractmethod
    def echo(self, prompt: Prompt) -> tuple[str, str]:
        """Return thoughts and result that merely repeat the question."""

    @override
    def prompts(self, split: Split) -> Sequence[Prompt]:
        return self._split(split)

    @override
    def reward(self, prompt: Prompt, text: str) -> float:
        call = only_call(text)
        if call is None or call.name != self.tool:
            return 0.0
        return float(set(call.arguments) == {"result"} and str(call.arguments["result"]) == prompt.columns["answer"])

    @override
    def format_rules(self) -> Sequence[FormatRule]:
        return (
            Truncated(),
            UnbalancedTags(OPEN, CLOSE),
            UnparsableToolCall(TaggedJson()),
            UnknownTool((self.tool,), TaggedJson()),
            TextAfterFinalTag(CLOSE),
            ThinkOnce(*THINK),
        )

    @override
    def demonstration(self, prompt: Prompt) -> str:
        return self._reply(*self.thoughts(prompt))

    @override
    def demonstrations(self, split: Split, num_examples: int, seed: int) -> Sequence[Messages]:
        noise, prompts = random.Random(f"{type(self).__name__} {split} {seed}"), self.prompts(split)  # not secret
        chosen = [prompts[noise.randrange(len(prompts))] for _ in range(num_examples)]
        write = self._expert_reply if self.agent == "expert" else self._sloppy_reply
        return [(*prompt.messages, {"role": "assistant", "content": write(prompt, noise)}) for prompt in chosen]

    def _expert_reply(self, prompt: Prompt, noise: random.Random) -> str:
        return self.demonstration(prompt)

    def _sloppy_reply(self, prompt: Prompt, noise: random.Random) -> str:
        if noise.random() < self.sloppy_right_fraction:
            return self._expert_reply(prompt, noise)
        kind = noise.random()
        if kind < ECHO_FRACTION:
            return self._reply(*self.echo(prompt))
        reply = self._reply(*self.slip(prompt))
        if kind < ECHO_FRACTION + SLIP_FRACTION:
            return reply
        return noise.choice([reply.removesuffix(CLOSE), reply.replace('"}}', '"}'), reply.replace(OPEN, "")])

    def _reply(self, thoughts: str, result: str) -> str:
        call = json.dumps({"name": self.tool, "arguments": {"result": result}}, separators=(",", ":"))
        return f"<think>{thoughts}</think>{OPEN}{call}{CLOSE}"
