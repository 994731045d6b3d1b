"""Rollout batches whose responses the student did not generate: a data set's, or the teachers' own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import OnProgress, RolloutEngine, Task
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.rollouts.episodes import Episode
from lightning_opd.rollouts.noise import row_seed
from lightning_opd.teachers import TeacherPool
from lightning_opd.tokenization.turns import render_demonstration
from lightning_opd.types import Prompt, Sample, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RolloutFn: TypeAlias = Callable[[RolloutEngine, Sequence[Prompt], Sequence[int]], list[Episode]]
"""Generates the episodes of (prompts, one seed per episode) with an engine, prompt by prompt."""


@dataclass(frozen=True)
class GenerationContext:
    """What a source may use to generate a rollout batch.

    Args:
        task: Gives the prompts' demonstrations.
        teachers: The loaded teachers.
        tokenizer: The student's.
        rollout: Generates episodes with an engine.
    """

    task: Task
    teachers: TeacherPool
    tokenizer: PreTrainedTokenizerBase
    rollout: RolloutFn


class ResponseSource(ABC):
    """Who generates the responses of an off-policy rollout batch."""

    def check(self, teachers: TeacherPool) -> None:
        """Refuse teachers that cannot do what they are needed for, before any weight is loaded; by default none."""

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], context: GenerationContext) -> list[Episode]:
        """Return one episode per seed, prompt by prompt; every rank calls it for the same rollout batches."""


class DatasetResponses(ResponseSource):
    """The task's own demonstrations: `Task.demonstration`, by default the row's `response` column."""

    @override
    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], context: GenerationContext) -> list[Episode]:
        num_samples = len(seeds) // len(prompts)
        responses = [self._response(prompt, context) for prompt in prompts for _ in range(num_samples)]
        return context.rollout(ReplayEngine(responses), prompts, seeds)

    def _response(self, prompt: Prompt, context: GenerationContext) -> tuple[int, ...]:
        reply = context.task.demonstration_message(prompt)
        if reply is None:
            msg = (
                f"The prompt {str(prompt.messages[-1].get('content', ''))[:60]!r} has no demonstration; its columns: "
                f"{sorted(prompt.columns)}. Add a `response` column, override `Task.demonstration`, or use "
                "`TeacherResponses`."
            )
            raise ConfigError(msg)
        token_ids, mask = render_demonstration(context.tokenizer, (*prompt.messages, reply))
        return tuple(token for token, is_own in zip(token_ids, mask, strict=True) if is_own)


class ReplayEngine(RolloutEngine):
    """An engine that returns what it was given, once."""

    def __init__(self, responses: Sequence[tuple[int, ...]]) -> None:
        self._responses = list(responses)

    @override
    def sync(self, student: torch.nn.Module, version: int) -> None:
        pass  # it replays, it does not generate

    @override
    def generate(
        self,
        token_ids: Sequence[Sequence[int]],
        num_samples: int,
        seeds: Sequence[int],
        sampling: Sampling = Sampling(),  # frozen, hence safe to share
        on_progress: OnProgress | None = None,
    ) -> list[Sample]:
        responses, self._responses = self._responses, []
        if not responses:
            msg = "Off-policy responses have one turn, and the environment asks for another. Use `TeacherResponses`."
            raise ConfigError(msg)
        longest = sampling.max_new_tokens
        return [Sample(ids[:longest], (0.0,) * len(ids[:longest]), len(ids) > longest) for ids in responses]


class TeacherResponses(ResponseSource):
    """Each prompt's own teacher generates, as the student would: same sampling, same noise.

    Args:
        batch_size: Most responses generated at once.
    """

    def __init__(self, batch_size: int = 512) -> None:
        """Make the engine the teachers take turns with."""
        self._engine = InProcessEngine(batch_size)

    @override
    def check(self, teachers: TeacherPool) -> None:
        teachers.check_generate()

    @override
    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], context: GenerationContext) -> list[Episode]:
        num_samples = len(seeds) // len(prompts)
        generated: dict[int, Episode] = {}
        for name in context.teachers.names:  # every rank, every teacher, one order
            chosen = [i for i, prompt in enumerate(prompts) if prompt.teacher == name]
            rows = [i * num_samples + j for i in chosen for j in range(num_samples)]
            with context.teachers.generating(name) as model:
                self._engine.sync(model, 0)
                # called even without any prompt: another rank may have some, and this one joins its collectives
                episodes = context.rollout(self._engine, [prompts[i] for i in chosen], [seeds[row] for row in rows])
            generated.update(zip(rows, episodes, strict=True))
        return [generated[row] for row in range(len(seeds))]


@dataclass(frozen=True)
class OffPolicyResponses:
    """A fraction of the rollout batches is not generated by the student, as in generalised knowledge distillation.

    Args:
        source: Who generates them.
        fraction: Of all rollout batches, drawn batch by batch; 1 trains on off-policy responses only.

    Reference:
        Agarwal et al., On-policy distillation of language models (2024), algorithm 1.
    """

    source: ResponseSource
    fraction: float = 0.5

    def __post_init__(self) -> None:
        """Check the fraction."""
        if not 0 < self.fraction <= 1:
            msg = f"`fraction` of off-policy batches must lie in (0, 1], got {self.fraction}."
            raise ConfigError(msg)

    def covers(self, seed: int, index: int) -> bool:
        """Return whether a rollout batch is off-policy; the same on every rank and after a resume."""
        return row_seed(seed, "given", index) < self.fraction * 2.0**63
