"""An agent that puts letters in another order with one of two tools."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import permutations

from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.tasks.splits import question_key
from lightning_opd.tasks.tool_agent import Harness, ToolAgent
from lightning_opd.tasks.tools import Tool, reverse_text, sort_text
from lightning_opd.tokenization.tool_calls import ToolCall
from lightning_opd.types import Prompt

TOOLS = {"sort": Tool(sort_text, isolated=False), "reverse": Tool(reverse_text, isolated=False)}
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


class TextAgent(ToolAgent):
    """Sort or reverse three letters with `sort_text` or `reverse_text`; the reply has three letters.

    6,720 questions with 16 letters to choose from. Both tools accept every input, so the wrong tool's answer
    looks plausible; calling it is the typical slip. For one question in six both tools give the same answer.

    Args:
        right_fraction: Fraction of demonstrations that make the right call.
        open_fraction: Fraction of demonstrations that leave the call open.
        harness: "strict" or "lenient" towards open calls.
        num_letters: How many letters of the alphabet a question may use, from 3 to 26.

    Example:
        >>> task = TextAgent()
        >>> prompt = task.questions()[1]
        >>> prompt.messages[0]["content"], task.call(prompt), prompt.columns["answer"]
        ('Please reverse a b c.', ToolCall(name='reverse_text', arguments={'text': 'a b c'}), 'c b a')
    """

    def __init__(
        self,
        right_fraction: float = 1.0,
        open_fraction: float = 0.0,
        harness: Harness = "strict",
        num_letters: int = 16,
    ) -> None:
        """Choose the demonstrator and the questions."""
        super().__init__(right_fraction, open_fraction, harness)
        if not 3 <= num_letters <= len(ALPHABET):
            msg = f"`num_letters` must be between 3 and {len(ALPHABET)}, got {num_letters}."
            raise ConfigError(msg)
        self.num_letters = num_letters

    @override
    def questions(self) -> Sequence[Prompt]:
        return _questions(self.num_letters)

    @override
    def tools(self) -> Sequence[Tool]:
        return tuple(TOOLS.values())

    @override
    def call(self, prompt: Prompt) -> ToolCall:
        return _call(prompt, str(prompt.columns["action"]))

    @override
    def slip(self, prompt: Prompt) -> ToolCall:
        return _call(prompt, "sort" if prompt.columns["action"] == "reverse" else "reverse")


def _call(prompt: Prompt, action: str) -> ToolCall:
    return ToolCall(TOOLS[action].name, {"text": str(prompt.columns["letters"])})


@cache
def _questions(num_letters: int) -> Sequence[Prompt]:
    letters = [" ".join(chosen) for chosen in permutations(ALPHABET[:num_letters], 3)]
    return [_prompt(action, text) for text in letters for action in TOOLS]


def _prompt(action: str, letters: str) -> Prompt:
    return Prompt(
        messages=({"role": "user", "content": f"Please {action} {letters}."},),
        key=question_key("text", action, letters),
        teacher="text",
        domain="text",
        columns={"action": action, "letters": letters, "answer": TOOLS[action].function(letters)},
    )
