"""An episode in which the student may call tools before it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from typing_extensions import override

from lightning_opd.interfaces import Environment, finite_reward
from lightning_opd.tasks.tools.tool import Tool
from lightning_opd.tokenization.replies import ReplyReader, as_message_call, call_id, reply_reader, shown_name
from lightning_opd.tokenization.tool_calls import TaggedJson, ToolCall, ToolCallParser
from lightning_opd.tokenization.tool_schema import typed_arguments
from lightning_opd.types import Message, Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_CALLS = 8
"""Most calls of one reply that are answered; each may take as long as its tool's time-out."""


class ToolEnvironment(Environment):
    """Answer the calls of each reply, in order; the first reply without a call is the final answer.

    A call inside a thought is none. Nothing that the student generates is evaluated as code: a call names a tool, and
    its arguments are checked. A reply with calls stands in the chat with its `tool_calls`, so that every chat template
    shows them in its own form.

    Args:
        messages: The messages that the student sees first.
        tools: The tools that it may call.
        final_reward: Reward of the final answer. An episode without one gets 0.
        parser: Finds the calls; by default in the form of the student's chat template.
        shows_tools: Whether the chat template shows the tools' schemas; False for a student that knows them.
    """

    def __init__(
        self,
        messages: Messages,
        tools: Sequence[Tool],
        final_reward: Callable[[str], float],
        parser: ToolCallParser | None = None,
        *,
        shows_tools: bool = True,
    ) -> None:
        """Start an episode for one question."""
        self._messages, self._final_reward, self.parser = messages, final_reward, parser
        self._tools = {tool.name: tool for tool in tools}
        self._shows_tools = shows_tools
        self._final: str | None = None
        self._read: Message | None = None
        self._calls: list[ToolCall | None] = []
        self._num_calls, self._has_more = 0, False

    @property
    @override
    def needs_main_thread(self) -> bool:
        """Whether a tool runs in this process, where only the main thread can stop it."""
        return any(not tool.isolated for tool in self._tools.values())

    @override
    def reset(self) -> Messages:
        if not self._shows_tools:
            return self._messages
        schemas = tuple(tool.schema for tool in self._tools.values())
        return ({**self._messages[0], "tools": schemas}, *self._messages[1:])

    @override
    def read(self, text: str, prompt: str = "", tokenizer: PreTrainedTokenizerBase | None = None) -> Message:
        known = ReplyReader(self.parser or TaggedJson())
        reader = known if tokenizer is None else reply_reader(tokenizer, self.parser)
        calls = reader.calls(text, prompt)
        self._calls = [call and self._typed(call) for call in calls[: MAX_CALLS if reader.takes_several else 1]]
        self._has_more = len(calls) > len(self._calls)
        self._read = {"role": "assistant", "content": text}
        if self._calls and reader.shows_calls:
            made = [as_message_call(call, self._num_calls + i, text) for i, call in enumerate(self._calls)]
            self._read = {"role": "assistant", "content": reader.content(text, prompt), "tool_calls": made}
        return self._read

    def _typed(self, call: ToolCall) -> ToolCall:
        known = self._tools.get(call.name)
        return call if known is None else ToolCall(call.name, typed_arguments(known.schema, call))

    @override
    def step(self, reply: Message) -> Messages:
        if reply is not self._read:
            self.read(str(reply["content"]))
        self._final = None if self._calls else str(reply["content"])
        answers = [self._message(call, self._num_calls + i) for i, call in enumerate(self._calls)]
        if self._has_more:
            note = f"error: only the first {len(answers)} calls were answered"
            answers[-1] = {**answers[-1], "content": f"{answers[-1]['content']}\n{note}"}
        self._num_calls += len(answers)
        return answers

    def _message(self, call: ToolCall | None, number: int) -> dict[str, object]:
        return {
            "role": "tool",
            "tool_call_id": call_id(number),
            "name": shown_name(call),
            "content": self._answer(call),
        }

    def _answer(self, call: ToolCall | None) -> str:
        if call is None:
            return "error: the call cannot be read"
        if call.name not in self._tools:
            names = ", ".join(self._tools)
            return f"error: there is no such tool; there is {names}"
        return self._tools[call.name].call(call.arguments)

    @override
    def reward(self) -> float:
        if self._final is None:
            return 0.0
        name = getattr(self._final_reward, "__qualname__", type(self._final_reward).__name__)
        return finite_reward(self._final_reward(self._final), f"`{name}`", str(self._messages[-1].get("content"))[:60])
