"""A long chain in which an uncorrected slip makes the rest wrong: running sums with a draft for each."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from torch import Tensor
from typing_extensions import override

from lightning_opd import Prompt, SFTModule, Task
from lightning_opd.interfaces import Split
from lightning_opd.tasks.splits import in_split, question_key
from lightning_opd.types import Messages

Writer: TypeAlias = Literal["careful", "sloppy"]
NUM_QUESTIONS = 10_000
DIGITS = "01234"


class RunningSum(Task):
    """Add digits modulo 5; after each digit state the sum twice, first as a draft, then as the one that counts.

    The outcome is 1 if every sum that counts is right.

    Args:
        num_digits: Length of the chain.
        writer: Who demonstrates: a careful one corrects every slip, a sloppy one keeps its wrong drafts and so
            continues from a wrong sum.
        slip_fraction: Fraction of drafts that a demonstration draws at random.

    Example:
        >>> task = RunningSum(num_digits=3)
        >>> task.reward(task.prompt("434"), "442211")
        1.0
    """

    def __init__(self, num_digits: int, writer: Writer = "careful", slip_fraction: float = 0.0) -> None:
        """Choose the length and the demonstrator."""
        self.num_digits, self.writer, self.slip_fraction = num_digits, writer, slip_fraction
        self._split = functools.cache(lambda split: in_split(self._questions(), split))

    def _questions(self) -> Sequence[Prompt]:
        noise = random.Random("running sum")  # the same questions in every run, not secret
        return [self.prompt("".join(noise.choices(DIGITS, k=self.num_digits))) for _ in range(NUM_QUESTIONS)]

    def prompt(self, digits: str) -> Prompt:
        """Return the question of some digits."""
        sums = "".join(itertools.accumulate(digits, add))
        key, name = question_key("running sum", digits), "expert"
        content = " ".join(
            digits
        )  # as many tokens per digit as in the reply: the digit to add lies at a fixed distance
        return Prompt(({"role": "user", "content": content},), key, name, name, {"digits": digits, "sums": sums})

    @override
    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Return the questions of a split."""
        return self._split(split)

    @override
    def reward(self, prompt: Prompt, text: str) -> float:
        """Return 1 if there are as many sums as digits, all of them right."""
        sums = str(prompt.columns["sums"])
        return float(len(text) == 2 * len(sums) and text[1::2] == sums)

    @override
    def demonstrations(self, split: Split, num_examples: int, seed: int) -> Sequence[Messages]:
        """Return chats of the chosen demonstrator."""
        noise, prompts = random.Random(f"running sum {split} {seed}"), self.prompts(split)  # not secret
        chosen = [prompts[noise.randrange(len(prompts))] for _ in range(num_examples)]
        return [(*prompt.messages, {"role": "assistant", "content": self._reply(prompt, noise)}) for prompt in chosen]

    def _reply(self, prompt: Prompt, noise: random.Random) -> str:
        total, reply = "0", ""
        for digit in str(prompt.columns["digits"]):
            total = add(total, digit)
            draft = noise.choice(DIGITS) if noise.random() < self.slip_fraction else total
            total = total if self.writer == "careful" else draft
            reply += draft + total
        return reply


def add(one: str, other: str) -> str:
    """Return the sum of two digits modulo their number."""
    return DIGITS[(int(one) + int(other)) % len(DIGITS)]


class MendingExpert(SFTModule):
    """Learns to correct slips without learning to make them: a wrong draft is context, not an example."""

    @override
    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Leave the wrong drafts out."""
        token_ids, mask = batch["token_ids"], batch["response_mask"].bool()
        is_draft = mask & mask.roll(-1, dims=1) & (mask.cumsum(dim=1) % 2 == 1)  # no sum follows the stop token
        is_slip = is_draft & (token_ids != token_ids.roll(-1, dims=1))
        return super().compute_loss({**batch, "response_mask": mask & ~is_slip})
