"""Several tasks as one: side by side, or one after the other."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Environment, FormatRule, Split, Task
from lightning_opd.types import Message, Messages, Prompt, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item")


class Mixture(Task):
    """Several tasks side by side; each prompt goes to the teacher that has its task's name.

    Args:
        tasks: Name → task. The name becomes the domain of its prompts, and their teacher; `None` takes a task out.
    """

    def __init__(self, tasks: Mapping[str, Task | None]) -> None:
        """Refuse an empty mixture."""
        self.tasks = {name: task for name, task in tasks.items() if task is not None}
        if not self.tasks:
            msg = "`tasks` of a Mixture is empty; name at least one task."
            raise ConfigError(msg)

    @override
    def prompts(self, split: Split) -> Sequence[Prompt]:
        named = [
            [dataclasses.replace(prompt, teacher=name, domain=name) for prompt in task.prompts(split)]
            for name, task in self.tasks.items()
        ]
        return interleave(named)

    @override
    def environment(self, prompt: Prompt) -> Environment:
        return self._task_of(prompt).environment(prompt)

    @override
    def reward(self, prompt: Prompt, text: str) -> float:
        return self._task_of(prompt).reward(prompt, text)

    @override
    def demonstration(self, prompt: Prompt) -> str | None:
        return self._task_of(prompt).demonstration(prompt)

    @override
    def demonstration_message(self, prompt: Prompt) -> Message | None:
        return self._task_of(prompt).demonstration_message(prompt)

    def _task_of(self, prompt: Prompt) -> Task:
        if prompt.domain not in self.tasks:
            msg = (
                f"A prompt of domain `{prompt.domain}` reached a Mixture of {sorted(self.tasks)}. "
                "A Mixture inside a Mixture cannot tell its prompts apart: name all tasks in one."
            )
            raise ConfigError(msg)
        return self.tasks[prompt.domain]

    @override
    def format_rules(self) -> Sequence[FormatRule]:
        """Return each task's rules, which apply only to its own prompts."""
        names: dict[str, list[tuple[str, FormatRule]]] = {}
        for domain, task in self.tasks.items():
            for rule in task.format_rules():
                names.setdefault(rule.name, []).append((domain, rule))
        return [_OwnDomain(name, tuple(rules)) for name, rules in names.items()]

    @override
    def demonstrations(self, split: Split, num_examples: int, seed: int) -> Sequence[Messages]:
        fractions = [len(range(i, num_examples, len(self.tasks))) for i in range(len(self.tasks))]
        parts = [
            task.demonstrations(split, fraction, seed)
            for task, fraction in zip(self.tasks.values(), fractions, strict=True)
        ]
        return interleave(parts)


@dataclass(frozen=True)
class _OwnDomain(FormatRule):
    """One rule name, decided by the rule of the prompt's own task."""

    rule_name: str
    rules: tuple[tuple[str, FormatRule], ...]

    @property
    @override
    def name(self) -> str:
        return self.rule_name

    @override
    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> FormatRule:
        return _OwnDomain(self.rule_name, tuple((owner, rule.for_tokenizer(tokenizer)) for owner, rule in self.rules))

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        domain = trajectory.prompt.domain
        return any(rule.is_broken(trajectory) for owner, rule in self.rules if owner == domain)


@dataclass(frozen=True)
class Phase:
    """A phase of a curriculum.

    Args:
        task: Demonstrates in this phase.
        fraction: Fraction of all examples.
    """

    task: Task
    fraction: float


class Curriculum(Task):
    """Demonstrations of several tasks one after the other; everything else comes from the first one.

    Args:
        phases: In the order of training; their fractions add up to 1.
    """

    def __init__(self, phases: list[Phase]) -> None:
        """Check the fractions."""
        total = sum(phase.fraction for phase in phases)
        if abs(total - 1) > 1e-6 or any(phase.fraction < 0 for phase in phases):
            fractions = [phase.fraction for phase in phases]
            msg = f"The fractions of a curriculum's phases must be positive and add up to 1, got {fractions}."
            raise ConfigError(msg)
        self.phases = phases

    @override
    def prompts(self, split: Split) -> Sequence[Prompt]:
        return self.phases[0].task.prompts(split)

    @override
    def environment(self, prompt: Prompt) -> Environment:
        return self.phases[0].task.environment(prompt)

    @override
    def reward(self, prompt: Prompt, text: str) -> float:
        return self.phases[0].task.reward(prompt, text)

    @override
    def demonstration(self, prompt: Prompt) -> str | None:
        return self.phases[0].task.demonstration(prompt)

    @override
    def demonstration_message(self, prompt: Prompt) -> Message | None:
        return self.phases[0].task.demonstration_message(prompt)

    @override
    def format_rules(self) -> Sequence[FormatRule]:
        return self.phases[0].task.format_rules()

    @override
    def demonstrations(self, split: Split, num_examples: int, seed: int) -> Sequence[Messages]:
        borders = [round(num_examples * sum(p.fraction for p in self.phases[:i])) for i in range(len(self.phases) + 1)]
        parts = [
            phase.task.demonstrations(split, end - start, seed + i)
            for i, (phase, start, end) in enumerate(zip(self.phases, borders[:-1], borders[1:], strict=True))
        ]
        return list(chain.from_iterable(parts))


def interleave(parts: Iterable[Sequence[Item]]) -> list[Item]:
    """Merge sequences so that every part of the result has them in proportion to their lengths.

    Example:
        >>> interleave(["aaaa", "bb"])
        ['a', 'b', 'a', 'a', 'b', 'a']
    """
    placed = [[((i + 0.5) / len(part), j, item) for i, item in enumerate(part)] for j, part in enumerate(parts)]
    return [item for _, _, item in heapq.merge(*placed, key=lambda entry: entry[:2])]
