"""A long chain in which one slip spoils the rest, unless it is noticed: running sums with a draft for each."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_opd import Prompt, SFTModule, Task
from lightning_opd.interfaces import Split
from lightning_opd.tasks.splits import in_split, question_key
from lightning_opd.types import Messages

NUM_QUESTIONS = 10_000


class RunningSum(Task):
    """Add digits modulo 10; after each digit write the sum twice, first as a draft, then as it counts.

    The outcome is 1 if the last sum is right.

    Args:
        num_digits: Length of the chain.
        slip_share: Share of drafts that are wrong in demonstrations; what counts is always right.

    Example:
        >>> task = RunningSum(num_digits=3)
        >>> task.outcome(task.prompt("478"), "441199")
        1.0
    """

    def __init__(self, num_digits: int, slip_share: float = 0.0) -> None:
        """Choose the length and the slips."""
        self.num_digits, self.slip_share = num_digits, slip_share
        self._split = functools.cache(lambda split: in_split(self._questions(), split))

    def _questions(self) -> Sequence[Prompt]:
        noise = random.Random("running sum")  # the same questions in every run, not secret
        return [self.prompt("".join(noise.choices("0123456789", k=self.num_digits))) for _ in range(NUM_QUESTIONS)]

    def prompt(self, digits: str) -> Prompt:
        """Return the question of some digits."""
        sums = "".join(str(total % 10) for total in itertools.accumulate(map(int, digits)))
        key, name = question_key("running sum", digits), "expert"
        return Prompt(({"role": "user", "content": digits},), key, name, name, {"sums": sums})

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Return the questions of a split."""
        return self._split(split)

    def outcome(self, prompt: Prompt, text: str) -> float:
        """Return 1 for the right number of sums with the right one at the end."""
        sums = str(prompt.columns["sums"])
        return float(len(text) == 2 * len(sums) and text[-1] == sums[-1])

    def demonstrations(self, split: Split, num_examples: int, seed: int) -> Sequence[Messages]:
        """Return chats of an agent that slips in its drafts and mends every slip."""
        noise, prompts = random.Random(f"running sum {split} {seed}"), self.prompts(split)  # not secret
        chosen = [prompts[noise.randrange(len(prompts))] for _ in range(num_examples)]
        return [(*prompt.messages, {"role": "assistant", "content": self._reply(prompt, noise)}) for prompt in chosen]

    def _reply(self, prompt: Prompt, noise: random.Random) -> str:
        sums = str(prompt.columns["sums"])
        drafts = [noise.choice("0123456789") if noise.random() < self.slip_share else total for total in sums]
        return "".join(itertools.chain(*zip(drafts, sums, strict=True)))


class MendingExpert(SFTModule):
    """Learns to mend slips, and not to make them: a wrong draft is context, and no example."""

    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Leave the wrong drafts out."""
        token_ids, mask = batch["token_ids"], batch["response_mask"].bool()
        is_draft = mask & mask.roll(-1, dims=1) & (mask.cumsum(dim=1) % 2 == 1)  # the stop token has no sum behind it
        is_slip = is_draft & (token_ids != token_ids.roll(-1, dims=1))
        return super().compute_loss({**batch, "response_mask": mask & ~is_slip})
