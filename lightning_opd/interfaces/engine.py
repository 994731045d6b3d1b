"""What generates responses with the current student."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch

from lightning_opd.errors import ConfigError
from lightning_opd.types import Sample, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnProgress: TypeAlias = Callable[[Mapping[int, Sample]], None]
"""Takes the responses that have ended since its last call, by their place in the order of the seeds; maybe none."""


class RolloutEngine(ABC):
    """Generates responses with the current student."""

    @property
    def is_exact(self) -> bool:
        """Whether its log-probs are the trainer's own, up to rounding."""
        return False

    @property
    def generates_ahead(self) -> bool:
        """Whether it may generate the next rollout batch, in a thread, while the student learns from this one."""
        return False

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the tokenizer of the episodes that follow; an engine that looks for stop strings itself keeps it."""

    def connect(self) -> int | None:
        """Refuse what can be known to be wrong before any weight is loaded.

        Returns:
            The most tokens of a prompt with its reply, where the engine has a limit of its own.

        Raises:
            ConfigError: Something that the engine needs is not there.
        """
        return None

    @abstractmethod
    def sync(self, student: torch.nn.Module, version: int) -> None:
        """Take over the student's weights; `version` grows with every optimiser step."""

    @abstractmethod
    def generate(
        self,
        token_ids: Sequence[Sequence[int]],
        num_samples: int,
        seeds: Sequence[int],
        sampling: Sampling = Sampling(),  # frozen, hence safe to share
        on_progress: OnProgress | None = None,
    ) -> list[Sample]:
        """Draw `num_samples` responses per prompt, prompt by prompt.

        Args:
            token_ids: Rendered prompts.
            num_samples: Siblings per prompt.
            seeds: One per response, in the order of the answer; a response depends on its prompt,
                its seed and the weights alone.
            sampling: Distribution that tokens are drawn from, length, stop tokens and strings.
            on_progress: Called now and then, with each response once, from the thread of this call.
        """

    @staticmethod
    def check_seeds(seeds: Sequence[int], num_prompts: int, num_samples: int) -> None:
        """Refuse a number of seeds that is not one for each response."""
        if len(seeds) != num_prompts * num_samples:
            msg = f"Expected {num_prompts * num_samples} seeds (prompts × samples), got {len(seeds)}."
            raise ConfigError(msg)

    def finish(self) -> None:
        """Release what was kept for further turns: these episodes are over."""

    def close(self) -> None:
        """Release what the engine holds."""
