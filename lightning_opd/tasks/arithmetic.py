"""Two-digit addition, with the carry in the thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from lightning_opd.tasks.splits import question_key
from lightning_opd.tasks.tool_answer import Agent, ToolAnswer
from lightning_opd.types import Prompt


class Arithmetic(ToolAnswer):
    """Add two numbers of two digits; think digit by digit, then call `calc` with the sum.

    8,100 questions: about 4,860 for training, 810 for validation, 2,430 for test.

    Args:
        agent: Who demonstrates: "expert" is always right; "sloppy" forgets carries, echoes an
            operand, or malforms the call.
        sloppy_right_fraction: Fraction of the sloppy agent's replies that are right on purpose. Where
            there is nothing to carry, a forgotten carry is right too: .53 of all at the default.

    Example:
        >>> task = Arithmetic()
        >>> prompt = next(p for p in task.questions() if p.columns["question"] == "47+38")
        >>> task.thoughts(prompt)
        ('7+8=15 carry,4+3+1=8', '85')
    """

    tool: ClassVar[str] = "calc"

    def __init__(self, agent: Agent = "expert", sloppy_right_fraction: float = 0.3) -> None:
        """Choose the demonstrator."""
        super().__init__(agent, sloppy_right_fraction)

    @override
    def questions(self) -> Sequence[Prompt]:
        return [_prompt(a, b) for a in range(10, 100) for b in range(10, 100)]

    @override
    def thoughts(self, prompt: Prompt) -> tuple[str, str]:
        return _add(prompt, forgets_carry=False)

    @override
    def slip(self, prompt: Prompt) -> tuple[str, str]:
        return _add(prompt, forgets_carry=True)

    @override
    def echo(self, prompt: Prompt) -> tuple[str, str]:
        question = str(prompt.columns["question"])
        return question, question.split("+", maxsplit=1)[0]


def _prompt(a: int, b: int) -> Prompt:
    question = f"{a}+{b}"
    return Prompt(
        messages=({"role": "user", "content": f"What is {question}?"},),
        key=question_key("arithmetic", question),
        teacher="arithmetic",
        domain="arithmetic",
        columns={"question": question, "answer": str(a + b)},
    )


def _add(prompt: Prompt, *, forgets_carry: bool) -> tuple[str, str]:
    a, b = str(prompt.columns["question"]).split("+")
    units = int(a[1]) + int(b[1])
    has_carry = units > 9 and not forgets_carry
    tens = int(a[0]) + int(b[0]) + has_carry
    carry = (" carry", "+1") if has_carry else ("", "")
    return f"{a[1]}+{b[1]}={units}{carry[0]},{a[0]}+{b[0]}{carry[1]}={tens}", f"{tens}{units % 10}"
