"""An episode in which the student may call tools before it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from typing_extensions import override

from lightning_opd.interfaces import Environment
from lightning_opd.tasks.tools.tool import Tool
from lightning_opd.tokenization.tool_calls import TaggedJson, ToolCall, ToolCallParser
from lightning_opd.types import Message, Messages

MAX_CALLS = 8
"""Most calls of one reply that are answered; each may take as long as its tool's time-out."""


class ToolEnvironment(Environment):
    """Answer the calls of each reply, in order; the first reply without a call is the final answer.

    Nothing that the student generates is evaluated as code: a call names a tool, and its arguments are checked.

    Args:
        messages: The messages that the student sees first.
        tools: The tools that it may call.
        final_reward: Reward of the final answer. An episode without one gets 0.
        parser: Finds the calls.
        shows_tools: Whether the chat template shows the tools' schemas; False for a student that knows them.
    """

    def __init__(
        self,
        messages: Messages,
        tools: Sequence[Tool],
        final_reward: Callable[[str], float],
        parser: ToolCallParser = TaggedJson(),  # frozen, hence safe to share
        *,
        shows_tools: bool = True,
    ) -> None:
        """Start an episode for one question."""
        self._messages, self._final_reward, self._parser = messages, final_reward, parser
        self._tools = {tool.name: tool for tool in tools}
        self._shows_tools = shows_tools
        self._final: str | None = None

    @override
    def reset(self) -> Messages:
        if not self._shows_tools:
            return self._messages
        schemas = tuple(tool.schema for tool in self._tools.values())
        return ({**self._messages[0], "tools": schemas}, *self._messages[1:])

    @override
    def step(self, reply: Message) -> Messages:
        text = str(reply["content"])
        calls = self._parser(text)
        self._final = None if calls else text
        answers = [self._answer(call) for call in calls[:MAX_CALLS]]
        if len(calls) > MAX_CALLS:
            answers.append({"role": "tool", "content": f"error: only the first {MAX_CALLS} calls were answered"})
        return answers

    def _answer(self, call: ToolCall | None) -> Message:
        if call is None:
            return {"role": "tool", "content": "error: the call cannot be read"}
        if call.name not in self._tools:
            names = ", ".join(self._tools)
            return {"role": "tool", "content": f"error: there is no such tool; there is {names}"}
        return {"role": "tool", "name": call.name, "content": self._tools[call.name].call(call.arguments)}

    @override
    def reward(self) -> float:
        return 0.0 if self._final is None else float(self._final_reward(self._final))
