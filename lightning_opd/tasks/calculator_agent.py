"""An agent that computes sums and differences with a calculator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.tasks.splits import question_key
from lightning_opd.tasks.tool_agent import Harness, ToolAgent
from lightning_opd.tasks.tools import Tool, calculate
from lightning_opd.tokenization.tool_calls import ToolCall
from lightning_opd.types import Prompt

CALCULATE = Tool(calculate, isolated=False)
SIGNS = {"add": "+", "subtract": "-"}


class CalculatorAgent(ToolAgent):
    """Add or subtract two numbers of two digits with `calculate`; the reply has one to three digits.

    5,430 questions with numbers up to 69. The typical slip takes the wrong sign.

    Args:
        right_fraction: Fraction of demonstrations that make the right call.
        open_fraction: Fraction of demonstrations that leave the call open.
        harness: "strict" or "lenient" towards open calls.
        highest: Largest number in a question, from 10 to 99.

    Example:
        >>> task = CalculatorAgent()
        >>> prompt = next(p for p in task.questions() if p.columns["answer"] == "105")
        >>> prompt.messages[0]["content"], task.call(prompt).arguments
        ('Please add 36 and 69.', {'expression': '36+69'})
    """

    def __init__(
        self, right_fraction: float = 1.0, open_fraction: float = 0.0, harness: Harness = "strict", highest: int = 69
    ) -> None:
        """Choose the demonstrator and the questions."""
        super().__init__(right_fraction, open_fraction, harness)
        if not 10 <= highest <= 99:
            msg = f"`highest` must have two digits, got {highest}."
            raise ConfigError(msg)
        self.highest = highest

    @override
    def questions(self) -> Sequence[Prompt]:
        return _questions(self.highest)

    @override
    def tools(self) -> Sequence[Tool]:
        return (CALCULATE,)

    @override
    def call(self, prompt: Prompt) -> ToolCall:
        return _call(prompt, SIGNS[str(prompt.columns["action"])])

    @override
    def slip(self, prompt: Prompt) -> ToolCall:
        return _call(prompt, "-" if prompt.columns["action"] == "add" else "+")


def _call(prompt: Prompt, sign: str) -> ToolCall:
    return ToolCall("calculate", {"expression": f"{prompt.columns['a']}{sign}{prompt.columns['b']}"})


@cache
def _questions(highest: int) -> Sequence[Prompt]:
    numbers = range(10, highest + 1)
    sums = [_prompt("add", a, b) for a in numbers for b in numbers]
    return sums + [_prompt("subtract", a, b) for a in numbers for b in numbers if b <= a]


def _prompt(action: str, a: int, b: int) -> Prompt:
    return Prompt(
        messages=({"role": "user", "content": f"Please {action} {a} and {b}."},),
        key=question_key("calculator", action, str(a), str(b)),
        teacher="calculator",
        domain="calculator",
        columns={"action": action, "a": a, "b": b, "answer": str(a + b if action == "add" else a - b)},
    )
