"""How long a prompt may be: what student and teachers can read, less what is added to it and what follows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import ReadsOwnPrompt, SingleTurn, Task
from lightning_opd.tokenization.chat import render_prompt
from lightning_opd.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LongPrompts: TypeAlias = Literal["error", "drop", "truncate_left"]
"""What becomes of a prompt that leaves no space for the reply."""


@dataclass(frozen=True)
class PromptLimits:
    """How long a prompt may be, and what becomes of a longer one.

    Args:
        max_new_tokens: Longest reply in tokens.
        max_length: Longest sequence in tokens.
        long_prompts: Refuse too long ones (`error`), leave them out (`drop`), or leave out the beginning of their
            longest message (`truncate_left`).
        max_measured: Prompts that are rendered, evenly spread, beside those with so many bytes that they might be too
            long; None for all.
        teacher_lengths: Longest sequence in tokens of each teacher that has fewer positions than the student, or reads
            another prompt.
        opening_tokens: Tokens that an episode's opening has beyond its prompt, by domain and teacher.
        own_prompts: The teachers that read another prompt.
        max_turns: Most replies of an episode.
        several_turns: Domains and teachers whose episodes may have more than one reply.
        source: What `max_length` is, in the user's words.
    """

    max_new_tokens: int
    max_length: int
    long_prompts: LongPrompts = "error"
    max_measured: int | None = None
    teacher_lengths: Mapping[str, int] = field(default_factory=dict)
    opening_tokens: Mapping[tuple[str, str], int] = field(default_factory=dict)
    own_prompts: Mapping[str, ReadsOwnPrompt] = field(default_factory=dict)
    max_turns: int = 1
    several_turns: Collection[tuple[str, str]] = ()
    source: str = "the student's context"

    def extra(self, prompt: Prompt) -> int:
        """Return the tokens that are added to a prompt, such as those of the tools."""
        return self.opening_tokens.get((prompt.domain, prompt.teacher), 0)

    def space(self, prompt: Prompt, num_hint: int = 0) -> int:
        """Return how many tokens a prompt may have, what is added included, so that a reply has space.

        Args:
            prompt: As the student reads it.
            num_hint: Tokens that its teacher's prompt has more.
        """
        return min(self.max_length, self.teacher_length(prompt, num_hint)) - self.max_new_tokens

    def teacher_length(self, prompt: Prompt, num_hint: int = 0) -> int:
        """Return the student's longest sequence in tokens that the prompt's teacher can read."""
        length = self.teacher_lengths.get(prompt.teacher)
        return self.max_length if length is None else length - num_hint


def opening_tokens(
    task: Task, prompts: Iterable[Prompt], tokenizer: PreTrainedTokenizerBase
) -> dict[tuple[str, str], int]:
    """Return the tokens that the opening of an episode has beyond its prompt, such as those of the tools.

    Looked at for the first prompt of each domain and teacher: environments may be costly to make.
    """
    first: dict[tuple[str, str], Prompt] = {}
    for prompt in prompts:
        first.setdefault((prompt.domain, prompt.teacher), prompt)
    more: dict[tuple[str, str], int] = {}
    for group, prompt in first.items():
        opening = task.environment(prompt).reset()
        if opening is not prompt.messages:
            try:
                lengths = [len(render_prompt(tokenizer, messages)) for messages in (prompt.messages, opening)]
            except ConfigError:
                continue  # the check of all prompts, or that of tools, says so
            more[group] = lengths[1] - lengths[0]
    return more


def several_turns(task: Task, prompts: Iterable[Prompt]) -> frozenset[tuple[str, str]]:
    """Return the domains and teachers whose episodes may have more than one reply, as their first prompt's has."""
    first: dict[tuple[str, str], Prompt] = {}
    for prompt in prompts:
        first.setdefault((prompt.domain, prompt.teacher), prompt)
    return frozenset(g for g, prompt in first.items() if not isinstance(task.environment(prompt), SingleTurn))
