"""Sorting and reversing a few letters."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from lightning_opd.tasks.splits import question_key
from lightning_opd.tasks.tool_answer import Agent, ToolAnswer
from lightning_opd.types import Prompt

MAX_QUESTIONS = 30_000
"""Well below the number of different questions, so that drawing them ends soon."""


class Strings(ToolAnswer):
    """Sort or reverse three or four letters; think, then call `text` with the result.

    Args:
        agent: Who demonstrates: "expert" is always right; "sloppy" swaps or echoes letters, or
            malforms the call.
        sloppy_right_share: Share of the sloppy agent's replies that are right on purpose.
        num_questions: Questions drawn for all splits together.

    Example:
        >>> Strings().questions()[0].messages[0]["content"]
        'Sort the letters q j n.'
    """

    tool: ClassVar[str] = "text"

    def __init__(self, agent: Agent = "expert", sloppy_right_share: float = 0.4, num_questions: int = 8100) -> None:
        """Choose the demonstrator and the number of questions."""
        super().__init__(agent, sloppy_right_share)
        if not 1 <= num_questions <= MAX_QUESTIONS:
            msg = f"`num_questions` must lie between 1 and {MAX_QUESTIONS}, got {num_questions}."
            raise ValueError(msg)
        self.num_questions = num_questions

    @override
    def questions(self) -> Sequence[Prompt]:
        noise = random.Random("strings")  # noqa: S311  # the same questions in every run, not secret
        contents: dict[tuple[str, str], None] = {}
        while len(contents) < self.num_questions:
            letters = " ".join(noise.choices(string.ascii_lowercase, k=noise.choice((3, 4))))
            contents[noise.choice(("Sort", "Reverse")), letters] = None
        return [_prompt(action, letters) for action, letters in contents]

    @override
    def thoughts(self, prompt: Prompt) -> tuple[str, str]:
        answer = str(prompt.columns["answer"])
        return f"{prompt.columns['action']}: {answer}", answer

    @override
    def mistake(self, prompt: Prompt, noise: random.Random) -> tuple[str, str]:
        letters = str(prompt.columns["letters"]).split()
        if noise.random() < 0.6:
            letters = str(prompt.columns["answer"]).split()
            place = noise.randrange(len(letters) - 1)
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
        result = " ".join(letters)
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
