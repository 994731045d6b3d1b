"""Routing: each prompt's own teacher scores it, and no other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import (
    Generates,
    HasOutputHead,
    ReadsOwnPrompt,
    ReadsStudentTokens,
    ScoresLater,
    TakesTurns,
    Teacher,
)
from lightning_opd.models import any_rank
from lightning_opd.servers import ServersDownError
from lightning_opd.teachers.mixture import MixtureTeacher
from lightning_opd.types import LinearHead, Prompt, ResponseStates, SampledTokens, Sampling, Signal, TeacherScores
from lightning_opd.types.mixtures import mixture_weights

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class TeacherPool:
    """All teachers by name; names with the same identity share one loaded model.

    Args:
        teachers: Name → teacher. Every rank visits them in the order of their sorted names.
        in_turn: Whether a teacher's weights are on the device only while it scores, once in a rollout batch, and wait
            in the machine's memory otherwise.
    """

    def __init__(self, teachers: Mapping[str, Teacher], *, in_turn: bool = False) -> None:
        """Keep one teacher per identity."""
        self.in_turn = in_turn
        shared: dict[Hashable, Teacher] = {}
        self.names = self.given = tuple(sorted(teachers))
        self._teachers = {name: shared.setdefault(teachers[name].identity, teachers[name]) for name in self.names}

    def mix(self, names: Iterable[str]) -> None:
        """Add the mixtures of given teachers that rows name, such as `code:0.3+math:0.7`; all ranks call it alike.

        Raises:
            ConfigError: A teacher that cannot be part of one.
        """
        for name in names:
            weights = mixture_weights(name)
            if name not in self._teachers and weights.keys() <= set(self.given):
                self._teachers[name] = MixtureTeacher.of_others(
                    {part: self._teachers[part] for part in weights}, weights
                )
        self._teachers = dict(sorted(self._teachers.items()))
        self.names = tuple(self._teachers)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self.names)

    def __getitem__(self, name: str) -> Teacher:
        """Return a teacher by its name."""
        return self._teachers[name]

    @property
    def distinct(self) -> dict[str, Teacher]:
        """The loaded models, each under its first name."""
        first: dict[int, str] = {}
        for name, teacher in self._teachers.items():
            first.setdefault(id(teacher), name)
        return {name: self._teachers[name] for name in first.values()}

    def check_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Raise on a prompt that its teacher cannot score; unknown teachers are found elsewhere.

        Raises:
            ConfigError: With what the teacher lacks.
        """
        for prompt in prompts:
            if prompt.teacher in self._teachers:
                self._teachers[prompt.teacher].check_prompt(prompt)

    def check_request(self, signals: frozenset[Signal], sampling: Sampling) -> None:
        """Raise where a teacher cannot give these signals about tokens drawn so.

        Raises:
            ConfigError: With the teacher's name.
        """
        for name, teacher in self.distinct.items():
            try:
                teacher.check_request(signals, sampling)
            except ConfigError as error:
                msg = f"Teacher `{name}`: {error}"
                raise ConfigError(msg) from None

    def with_own_prompts(self) -> dict[str, ReadsOwnPrompt]:
        """Return the teachers that read other prompts than the student."""
        return {name: teacher for name, teacher in self._teachers.items() if isinstance(teacher, ReadsOwnPrompt)}

    def shorter_than(self, max_length: int) -> dict[str, int]:
        """Return the longest sequence in tokens of each teacher that may not be able to read one of `max_length`.

        They have fewer positions, or read another prompt, which may be longer.
        """
        lengths = {n: t.declared_max_length() for n, t in self._teachers.items() if isinstance(t, ReadsStudentTokens)}
        own = self.with_own_prompts()
        return {name: length for name, length in lengths.items() if length < max_length or name in own}

    def setup(self, device: torch.device, mesh: DeviceMesh | None = None) -> None:
        """Load every distinct model once."""
        for name, teacher in self.distinct.items():
            teacher.setup(device, mesh)
            if name in self.given:  # a mixture's parts may not be loaded yet
                self._leave(teacher)

    def ids(self, prompts: Iterable[Prompt]) -> list[int]:
        """Return the teacher index of each prompt; -1 where there is no such teacher."""
        index = {name: i for i, name in enumerate(self.names)}
        return [index.get(prompt.teacher, -1) for prompt in prompts]

    def check_generate(self) -> None:
        """Raise unless every teacher can generate responses.

        Raises:
            ConfigError: With the name of one that cannot.
        """
        for name, teacher in self._teachers.items():
            if not isinstance(teacher, Generates):
                msg = (
                    f"Teacher `{name}` ({type(teacher).__name__}) cannot generate responses here; use a LocalTeacher "
                    "or an AdapterTeacher, or `DatasetResponses`."
                )
                raise ConfigError(msg)

    @contextmanager
    def generating(self, name: str) -> Iterator[torch.nn.Module]:
        """Give a teacher's causal language model for as long as it generates."""
        teacher = self._teachers[name]
        assert isinstance(teacher, Generates)
        self._enter(teacher, None)
        try:
            with teacher.generating() as model:
                yield model
        finally:
            self._leave(teacher)

    @property
    def score_elsewhere(self) -> bool:
        """Whether a teacher computes elsewhere, and could begin while episodes are still generated."""
        return any(isinstance(teacher, ScoresLater) for teacher in self._teachers.values())

    def begin(self, ended: Sequence[tuple[Prompt, Sequence[int]]], signals: frozenset[Signal]) -> None:
        """Let teachers that compute elsewhere begin with episodes that have just ended.

        Args:
            ended: Prompt and tokens of each.
            signals: What `score` will be asked for.
        """
        for name, teacher in self._teachers.items():
            token_ids = [ids for prompt, ids in ended if prompt.teacher == name]
            if token_ids and isinstance(teacher, ScoresLater):
                teacher.begin(token_ids, signals)

    def score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        """Let each teacher score its own rows, and return all scores as one.

        A teacher's own metric is called `<quantity>/<teacher>`. Hidden states keep each teacher's width; top-k lists
        of unequal length are cut to the shortest. Teachers that compute elsewhere are asked first and waited for at
        their turn.

        Raises:
            ServersDownError: On every rank, where the servers of a teacher no longer answer one of them.
        """
        rows_of = [(tokens.teacher_ids == index).nonzero().squeeze(-1) for index in range(len(self.names))]
        selected = [tokens.select(rows) for rows in rows_of]
        answers = {
            index: remote.submit(selected[index], signals)
            for index, name in enumerate(self.names)
            if isinstance(remote := self._teachers[name], ScoresLater)
        }
        lost: ServersDownError | None = None
        logprobs = torch.zeros_like(tokens.rollout_logprobs)
        aligned_mask = torch.zeros_like(tokens.response_mask)
        parts: dict[int, tuple[Tensor, slice, TeacherScores]] = {}
        metrics: dict[str, tuple[Tensor, Tensor]] = {}
        teacher: Teacher | None = None
        for index, name in self._visits():  # every rank, every teacher, one order
            rows, part, columns = rows_of[index], selected[index], tokens.span(rows_of[index])
            self._enter(self._teachers[name], teacher)
            teacher = self._teachers[name]
            try:
                scores = answers[index]() if index in answers else teacher.score(part, signals)
            except ServersDownError as error:  # the other ranks still compute with the other teachers
                lost = error
                continue
            logprobs[rows, columns] = scores.logprobs.to(logprobs.dtype)
            aligned_mask[rows, columns] = scores.aligned_mask
            metrics |= {f"{quantity}/{name}": pair for quantity, pair in scores.metrics.items()}
            parts[index] = rows, columns, scores
        if teacher is not None:
            self._leave(teacher)
        if any_rank(lost is not None):
            raise lost or ServersDownError("The servers of a teacher no longer answer another process of this run.")

        def together(pick: Callable[[TeacherScores], Tensor | None]) -> Tensor | None:
            found = [(rows, columns, x) for rows, columns, s in parts.values() if (x := pick(s)) is not None]
            if not found:
                return None
            widths = [x.shape[-1] for rows, _, x in found if len(rows)] or [found[0][2].shape[-1]]
            width = min(widths)
            whole = found[0][2].new_zeros(*logprobs.shape, width)
            for rows, columns, x in found:
                whole[rows, columns] = x[..., :width]
            return whole

        states: ResponseStates | None = None
        if any(scores.hidden_states is not None for _, _, scores in parts.values()):
            states = ResponseStates.empty(tokens.token_ids.shape, tokens.token_ids.device)
            for _, (rows, columns, scores) in sorted(parts.items()):  # in the order of the heads
                states = states.with_teacher(rows, columns, scores.hidden_states)

        return TeacherScores(
            logprobs,
            aligned_mask,
            together(lambda s: s.top_ids),
            together(lambda s: s.top_logprobs),
            states,
            self.heads() if Signal.HIDDEN_STATES in signals else (),
            metrics,
        )

    def _visits(self) -> list[tuple[int, str]]:
        """Return index and name of each teacher in order; in turn, the names of one model follow each other."""
        names = list(enumerate(self.names))
        if self.in_turn:
            first = {id(teacher): place for place, teacher in reversed(list(enumerate(self._teachers.values())))}
            names.sort(key=lambda visit: first[id(self._teachers[visit[1]])])
        return names

    def _enter(self, teacher: Teacher, before: Teacher | None) -> None:
        """Let a teacher come to the device, and the one before it leave, where they take turns."""
        if not self.in_turn or teacher is before:
            return
        if before is not None:
            self._leave(before)
        if isinstance(teacher, TakesTurns):  # also without a row of its own: other ranks may have some
            teacher.enter_device()

    def _leave(self, teacher: Teacher) -> None:
        if self.in_turn and isinstance(teacher, TakesTurns):
            teacher.leave_device()

    def heads(self) -> tuple[LinearHead | None, ...]:
        """Return each teacher's output head, in the order of `names`."""
        teachers = (self._teachers[name] for name in self.names)
        return tuple(teacher.output_head() if isinstance(teacher, HasOutputHead) else None for teacher in teachers)

    def close(self) -> None:
        """Release every model."""
        for teacher in self.distinct.values():
            teacher.close()
