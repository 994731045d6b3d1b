"""The base of the tiny tasks of two turns: call a tool, read its answer, reply with it."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Literal

from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Environment, FormatRule, Split, Task
from lightning_opd.tasks.format_rules import (
    SpecialTokenInside,
    TextAfterFinalTag,
    Truncated,
    UnbalancedTags,
    UnknownTool,
    UnparsableToolCall,
    WrongArguments,
)
from lightning_opd.tasks.splits import in_split
from lightning_opd.tasks.tools import Tool, ToolEnvironment
from lightning_opd.tokenization.tool_calls import CLOSE, OPEN, TaggedJson, ToolCall, render_tool_call
from lightning_opd.types import Message, Messages, Prompt

Harness = Literal["strict", "lenient"]


class ToolAgent(Task):
    """A question that a tool answers: the student generates the call, reads the answer, and replies with it.

    The reward is 1 if the final reply is exactly the right answer. The demonstrator runs real episodes,
    in the same harness as the student.

    Args:
        right_fraction: Fraction of demonstrations that make the right call; the others make the typical slip.
        open_fraction: Fraction of demonstrations that leave the call open, without its closing tag.
        harness: "strict" answers closed calls only, so that an open call counts as a wrong final reply;
            "lenient" also answers a last call without its closing tag.
    """

    def __init__(self, right_fraction: float, open_fraction: float, harness: Harness) -> None:
        """Check the demonstrator's fractions."""
        for name, fraction in (("right_fraction", right_fraction), ("open_fraction", open_fraction)):
            if not 0 <= fraction <= 1:
                msg = f"`{name}` is a fraction between 0 and 1, got {fraction}."
                raise ConfigError(msg)
        if harness not in ("strict", "lenient"):
            msg = f"`harness` must be 'strict' or 'lenient', got {harness!r}."
            raise ConfigError(msg)
        self.right_fraction, self.open_fraction, self.harness = right_fraction, open_fraction, harness
        self._split = cache(lambda split: in_split(self.questions(), split))

    @abstractmethod
    def questions(self) -> Sequence[Prompt]:
        """Return every question of every split, the right answer in its column `answer`."""

    @abstractmethod
    def tools(self) -> Sequence[Tool]:
        """Return what the student may call."""

    @abstractmethod
    def call(self, prompt: Prompt) -> ToolCall:
        """Return the call that gives the answer."""

    @abstractmethod
    def slip(self, prompt: Prompt) -> ToolCall:
        """Return the typical wrong call."""

    @override
    def prompts(self, split: Split) -> Sequence[Prompt]:
        return self._split(split)

    @override
    def environment(self, prompt: Prompt) -> Environment:
        parser = TaggedJson(is_lenient=self.harness == "lenient")
        return ToolEnvironment(
            prompt.messages, self.tools(), lambda reply: self.reward(prompt, reply), parser, shows_tools=False
        )

    @override
    def reward(self, prompt: Prompt, text: str) -> float:
        """Return 1 if the final reply is the right answer."""
        return float(text == prompt.columns["answer"])

    @override
    def format_rules(self) -> Sequence[FormatRule]:
        schemas = {tool.name: tool.schema for tool in self.tools()}
        return (
            Truncated(),
            UnbalancedTags(OPEN, CLOSE),
            UnparsableToolCall(TaggedJson()),
            UnknownTool(tuple(schemas), TaggedJson()),
            WrongArguments(schemas, TaggedJson()),
            TextAfterFinalTag(CLOSE),
            SpecialTokenInside(),
        )

    @override
    def demonstrations(self, split: Split, num_examples: int, seed: int) -> Sequence[Messages]:
        noise, prompts = random.Random(f"{type(self).__name__} {split} {seed}"), self.prompts(split)  # not secret
        return [self._play(prompts[noise.randrange(len(prompts))], noise) for _ in range(num_examples)]

    def _play(self, prompt: Prompt, noise: random.Random) -> Messages:
        call = self.call(prompt) if noise.random() < self.right_fraction else self.slip(prompt)
        text = render_tool_call(call.name, call.arguments)
        environment, chat = self.environment(prompt), list(prompt.messages)
        environment.reset()
        reply: Message = {"role": "assistant", "content": text}
        if noise.random() < self.open_fraction:
            reply = {"role": "assistant", "content": text.removesuffix(CLOSE)}
        answer = environment.step(reply)
        chat += [reply, *answer]
        if answer:
            chat.append({"role": "assistant", "content": answer[-1]["content"]})
        return chat
