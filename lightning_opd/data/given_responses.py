"""Windows whose responses the student did not write: a data set's, or the teachers' own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from typing_extensions import override

from lightning_opd.interfaces import RolloutEngine, Task
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.rollouts.noise import row_seed
from lightning_opd.teachers import TeacherPool
from lightning_opd.tokenization.chat import render_demonstration
from lightning_opd.types import Prompt, Sample, Sampling, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Play: TypeAlias = Callable[[RolloutEngine, Sequence[Prompt], Sequence[int]], list[Trajectory]]
"""Plays episodes of (prompts, one seed per episode) with an engine, prompt by prompt."""


@dataclass(frozen=True)
class Scene:
    """What a source may use to write a window.

    Args:
        task: Gives the prompts' demonstrations.
        teachers: The loaded teachers.
        tokenizer: The student's.
        play: Turns an engine into judged episodes.
    """

    task: Task
    teachers: TeacherPool
    tokenizer: PreTrainedTokenizerBase
    play: Play


class ResponseSource(ABC):
    """Who writes the responses of a given window."""

    @abstractmethod
    def write(self, prompts: Sequence[Prompt], seeds: Sequence[int], scene: Scene) -> list[Trajectory]:
        """Return one judged episode per seed, prompt by prompt; every rank calls it for the same windows."""


class DatasetResponses(ResponseSource):
    """The task's own demonstrations: `Task.demonstration`, by default the row's `response` column."""

    @override
    def write(self, prompts: Sequence[Prompt], seeds: Sequence[int], scene: Scene) -> list[Trajectory]:
        num_samples = len(seeds) // len(prompts)
        responses = [self._response(prompt, scene) for prompt in prompts for _ in range(num_samples)]
        return scene.play(_Script(responses), prompts, seeds)

    def _response(self, prompt: Prompt, scene: Scene) -> tuple[int, ...]:
        text = scene.task.demonstration(prompt)
        if text is None:
            msg = (
                f"The prompt {str(prompt.messages[-1].get('content', ''))[:60]!r} has no demonstration; its columns: "
                f"{sorted(prompt.columns)}. Add a `response` column, override `Task.demonstration`, or use "
                "`TeacherResponses`."
            )
            raise ValueError(msg)
        messages = (*prompt.messages, {"role": "assistant", "content": text})
        token_ids, mask = render_demonstration(scene.tokenizer, messages)
        return tuple(token for token, is_own in zip(token_ids, mask, strict=True) if is_own)


class _Script(RolloutEngine):
    """An engine that writes what it was given, once."""

    def __init__(self, responses: Sequence[tuple[int, ...]]) -> None:
        self._responses = list(responses)

    @override
    def sync(self, student: torch.nn.Module, version: int) -> None:
        pass  # it reads, it does not write

    @override
    def generate(
        self,
        token_ids: Sequence[Sequence[int]],
        num_samples: int,
        seeds: Sequence[int],
        sampling: Sampling = Sampling(),  # frozen, hence safe to share
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Sample]:
        responses, self._responses = self._responses, []
        if not responses:
            msg = "Given responses have one turn, and the environment asks for another. Use `TeacherResponses`."
            raise ValueError(msg)
        longest = sampling.max_new_tokens
        return [Sample(ids[:longest], (0.0,) * len(ids[:longest]), len(ids) > longest) for ids in responses]


class TeacherResponses(ResponseSource):
    """Each prompt's own teacher writes, as the student would: same sampling, same noise.

    Args:
        batch_size: Most responses written at once.
    """

    def __init__(self, batch_size: int = 512) -> None:
        """Make the engine the teachers take turns with."""
        self._engine = InProcessEngine(batch_size)

    @override
    def write(self, prompts: Sequence[Prompt], seeds: Sequence[int], scene: Scene) -> list[Trajectory]:
        num_samples = len(seeds) // len(prompts)
        written: dict[int, Trajectory] = {}
        for name in scene.teachers.names:  # every rank, every teacher, one order
            model = scene.teachers[name].generator()
            if model is None:
                msg = f"Teacher `{name}` cannot write responses here; use a LocalTeacher, or `DatasetResponses`."
                raise ValueError(msg)
            self._engine.sync(model, 0)
            chosen = [i for i, prompt in enumerate(prompts) if prompt.teacher == name]
            rows = [i * num_samples + j for i in chosen for j in range(num_samples)]
            # played even without any prompt: another rank may have some, and this one joins its collectives
            episodes = scene.play(self._engine, [prompts[i] for i in chosen], [seeds[row] for row in rows])
            written.update(zip(rows, episodes, strict=True))
        return [written[row] for row in range(len(seeds))]


@dataclass(frozen=True)
class GivenResponses:
    """A share of the windows is not written by the student, as in generalised knowledge distillation.

    Args:
        source: Who writes them.
        share: Of all windows, drawn window by window; 1 trains on given responses only.

    Reference:
        Agarwal et al., On-policy distillation of language models (2024), algorithm 1.
    """

    source: ResponseSource
    share: float = 0.5

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 < self.share <= 1:
            msg = f"`share` of given windows must lie in (0, 1], got {self.share}."
            raise ValueError(msg)

    def covers(self, seed: int, window: int) -> bool:
        """Return whether a window is given; the same on every rank and after a resume."""
        return row_seed(seed, "given", window) < self.share * 2.0**63
