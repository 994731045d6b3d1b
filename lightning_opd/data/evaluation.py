"""What validation, test and predict run over."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_opd.errors import ConfigError
from lightning_opd.types import Mode, Prompt, Split


@dataclass(frozen=True)
class Evaluation:
    """What `validate`, `test` and `predict` run over.

    Args:
        splits: Splits that `test` and `predict` go through.
        modes: "sampled" draws at the training temperature, "greedy" takes the likeliest token.
        num_prompts: Prompts per domain, split and mode: one number, or one for each domain (a domain
            without a number is left out); null takes all.
        num_validation_prompts: Prompts per domain in validation, which is sampled with fixed noise.
        batch_size: Prompts per batch and process.
    """

    splits: list[Split] = dataclasses.field(default_factory=lambda: ["test"])
    modes: list[Mode] = dataclasses.field(default_factory=lambda: ["sampled", "greedy"])
    num_prompts: int | dict[str, int] | None = None
    num_validation_prompts: int | None = 128
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.batch_size < 1:
            msg = f"`evaluation.batch_size` must be at least 1 prompt, got {self.batch_size}."
            raise ConfigError(msg)
        limits = self.num_prompts if isinstance(self.num_prompts, dict) else {"every domain": self.num_prompts}
        for domain, limit in limits.items():
            if limit is not None and limit < 1:
                msg = (
                    f"`evaluation.num_prompts` of {domain} must be at least 1, got {limit}. Leave a domain out of the "
                    "mapping to skip it; null takes all prompts."
                )
                raise ConfigError(msg)
        if self.num_validation_prompts is not None and self.num_validation_prompts < 1:
            msg = (
                f"`evaluation.num_validation_prompts` must be at least 1, got {self.num_validation_prompts}. "
                "`trainer.limit_val_batches: 0` switches validation off; null takes all prompts."
            )
            raise ConfigError(msg)
        for name, chosen in (("splits", self.splits), ("modes", self.modes)):
            if not chosen:
                msg = f"`evaluation.{name}` must name at least one, got an empty list."
                raise ConfigError(msg)


def first_of_each_domain(prompts: Sequence[Prompt], num_prompts: int | dict[str, int] | None) -> list[Prompt]:
    """Return the first `num_prompts` prompts of every domain, in their order."""
    taken: dict[str, int] = {}
    chosen = []
    for prompt in prompts:
        limit = num_prompts.get(prompt.domain, 0) if isinstance(num_prompts, dict) else num_prompts
        taken[prompt.domain] = taken.get(prompt.domain, 0) + 1
        if limit is None or taken[prompt.domain] <= limit:
            chosen.append(prompt)
    return chosen
