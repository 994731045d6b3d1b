"""Sorting and reversing a few letters."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.tasks.splits import question_key
from lightning_opd.tasks.tool_answer import Agent, ToolAnswer
from lightning_opd.types import Prompt

ALPHABET = string.ascii_lowercase[:16]
MAX_QUESTIONS = 13_000
"""Half of them have three letters, of which there are 16 × 15 × 14 × 2 = 6,720."""


class Strings(ToolAnswer):
    """Sort or reverse three or four different letters; think, then call `text` with the result.

    Args:
        agent: Who demonstrates: "expert" is always right; "sloppy" swaps the last two of four
            letters, echoes the question, or malforms the call.
        sloppy_right_fraction: Fraction of the sloppy agent's replies that are right on purpose. Three
            letters are right after the swap as well: .54 of all are right at the default.
        num_questions: Questions for all splits together, half of them with three letters.

    Example:
        >>> Strings().questions()[0].messages[0]["content"]
        'Reverse the letters f j h.'
    """

    tool: ClassVar[str] = "text"

    def __init__(
        self, agent: Agent = "expert", sloppy_right_fraction: float = 0.3, num_questions: int = 12_000
    ) -> None:
        """Choose the demonstrator and the number of questions."""
        super().__init__(agent, sloppy_right_fraction)
        if not 1 <= num_questions <= MAX_QUESTIONS:
            msg = f"`num_questions` must lie between 1 and {MAX_QUESTIONS}, got {num_questions}."
            raise ConfigError(msg)
        self.num_questions = num_questions

    @override
    def questions(self) -> Sequence[Prompt]:
        noise = random.Random("strings")  # the same questions in every run, not secret
        contents: dict[tuple[str, str], None] = {}
        while len(contents) < self.num_questions:
            letters = " ".join(noise.sample(ALPHABET, k=3 + len(contents) % 2))
            contents[noise.choice(("Sort", "Reverse")), letters] = None
        return [_prompt(action, letters) for action, letters in contents]

    @override
    def thoughts(self, prompt: Prompt) -> tuple[str, str]:
        return _think(prompt, str(prompt.columns["answer"]))

    @override
    def slip(self, prompt: Prompt) -> tuple[str, str]:
        letters = str(prompt.columns["answer"]).split()
        return _think(prompt, " ".join((*letters[:2], *reversed(letters[2:]))))

    @override
    def echo(self, prompt: Prompt) -> tuple[str, str]:
        return _think(prompt, str(prompt.columns["letters"]))


def _think(prompt: Prompt, result: str) -> tuple[str, str]:
    return f"{prompt.columns['action']}: {result}", result


def _prompt(action: str, letters: str) -> Prompt:
    parts = letters.split()
    answer = " ".join(sorted(parts) if action == "Sort" else reversed(parts))
    return Prompt(
        messages=({"role": "user", "content": f"{action} the letters {letters}."},),
        key=question_key("strings", action, letters),
        teacher="strings",
        domain="strings",
        columns={"action": action.lower(), "letters": letters, "answer": answer},
    )
