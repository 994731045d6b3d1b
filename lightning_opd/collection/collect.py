"""One rollout batch, in the order of execution: generate → reward → score → callbacks → prepare → split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch

from lightning_opd.collection.ahead import Generated, GenerationAhead
from lightning_opd.collection.checks import check_shapes
from lightning_opd.collection.collate import collate, split, to_rollout_batch
from lightning_opd.collection.learner import Learner
from lightning_opd.collection.off_policy import GenerationContext, OffPolicyResponses
from lightning_opd.collection.prepare import prepare
from lightning_opd.collection.proof import FirstBatchProof
from lightning_opd.collection.statistics import Stopwatch, padding, rollout_statistics, staleness
from lightning_opd.functional.length_groups import MAX_TOKENS_PER_FORWARD
from lightning_opd.interfaces import RolloutEngine, Task
from lightning_opd.models import any_rank, sum_over_ranks
from lightning_opd.rollouts.episodes import Episode, generate_episodes, reward_episodes
from lightning_opd.rollouts.noise import row_seed
from lightning_opd.servers import ServersDownError
from lightning_opd.tokenization.compatibility import padding_token_id
from lightning_opd.types import Prompt, PromptBatch, RolloutBatch, SampledTokens, Sampling, Signal, TeacherScores


class RolloutRequest(NamedTuple):
    """What to generate.

    Args:
        prompts: The questions.
        seeds: One per episode, prompt by prompt.
        sampling: How to draw.
        signals: What teachers will be asked about the episodes.
    """

    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    sampling: Sampling
    signals: frozenset[Signal]


@dataclass(frozen=True)
class Collector:
    """Makes rollout batches; everything that it uses is passed in.

    Args:
        learner: The student, its teachers and the objective.
        task: Environments, rewards and format rules.
        engine: Generates the responses.
        sampling: How to draw them, with the stop tokens filled in.
        seed: Of the noise.
        samples_per_prompt: Sibling rollouts per prompt.
        updates_per_batch: Optimiser steps per rollout batch.
        off_policy: Fraction of rollout batches that somebody else generates, or None.
        stage: Enters the precision of the training step and the profiler, without gradients.
        on_progress: Called with a stage, the number of finished responses, and of all.
        max_tokens_per_forward: Most tokens, padding included, of a forward of the student without a graph.
        proof: Compares the engine with the training forward, once.
        ahead: Generates the next rollout batch while the student learns from this one, or None.
    """

    learner: Learner
    task: Task
    engine: RolloutEngine
    sampling: Sampling
    seed: int
    samples_per_prompt: int
    updates_per_batch: int
    off_policy: OffPolicyResponses | None
    stage: Callable[[str], AbstractContextManager[object]]
    on_progress: Callable[[str, int, int], None]
    max_tokens_per_forward: int = MAX_TOKENS_PER_FORWARD
    proof: FirstBatchProof = field(default_factory=FirstBatchProof)
    ahead: GenerationAhead | None = None

    def collect(
        self,
        batch: PromptBatch,
        version: int,
        num_micro_batches: int,
        callbacks: Sequence[tuple[str, Callable[[RolloutBatch], None]]],
        signals: frozenset[Signal] = frozenset(),
        upcoming: PromptBatch | None = None,
    ) -> list[RolloutBatch]:
        """Return the micro-batches of one rollout batch, in order of use.

        Args:
            batch: This rank's prompts.
            version: Optimiser steps so far: the version of the student's weights.
            num_micro_batches: Micro-batches per optimiser step.
            callbacks: Name and function of each callback, in their order.
            signals: What they read of the teachers' scores, beside what the learner asks for.
            upcoming: The prompts of the next rollout batch, which may be generated ahead.
        """
        is_off_policy = self._is_off_policy(batch)
        with Stopwatch() as rollout_time, self.stage("rollout"):
            signals |= self.learner.signals
            generated = self._generated(batch, version, signals)
            self._begin(upcoming, version, signals)
            tokens = self._reward(generated.episodes, batch, self.sampling)
        with Stopwatch() as score_time, self.stage("score"):
            scores = self._score(tokens, signals)
        rollouts = self._join(tokens, scores, batch, is_off_policy=is_off_policy)
        if not is_off_policy:
            with self.stage("proof"):
                self.proof.check(rollouts, self.learner, self.engine, self.sampling)
        statistics = rollout_statistics(rollouts, rollout_time.seconds, score_time.seconds)
        rollouts.num_active_tokens = sum_over_ranks(rollouts.num_active_tokens)  # fixed before the callbacks
        rollouts.num_trajectories = sum_over_ranks(rollouts.num_trajectories)
        for name, callback in callbacks:
            callback(rollouts)
            check_shapes(rollouts, name)
        with self.stage("prepare"):
            prepare(rollouts, self.learner, self.updates_per_batch, self.max_tokens_per_forward)
        if self.ahead is not None:
            statistics["train/staleness"] = staleness(version - generated.version, rollouts)
        rollouts.metrics = {**statistics, **rollouts.metrics}
        parts = split(rollouts, self.updates_per_batch, num_micro_batches, sum_over_ranks)
        parts[0].metrics = {**parts[0].metrics, **padding(parts, self.learner.load_language_model())}
        return parts

    def evaluate(self, batch: PromptBatch, version: int) -> RolloutBatch:
        """Return one response per prompt with its log-probs, and with noise that depends on split and prompt alone."""
        seeds = [row_seed(self.seed, batch.split, prompt.key, 0) for prompt in batch.prompts]
        is_greedy = batch.mode == "greedy"
        sampling = dataclasses.replace(self.sampling, temperature=0.0) if is_greedy else self.sampling
        signals = frozenset({Signal.LOGPROBS})
        with self.stage("rollout"):
            episodes = self._generate(RolloutRequest(batch.prompts, seeds, sampling, signals), version)
            tokens = self._reward(episodes, batch, sampling)
        with self.stage("score"):
            scores = self._score(tokens, signals)
        return self._join(tokens, scores, batch)

    def _is_off_policy(self, batch: PromptBatch) -> bool:
        return self.off_policy is not None and self.off_policy.covers(self.seed, batch.index)

    def _request(self, batch: PromptBatch, signals: frozenset[Signal]) -> RolloutRequest:
        rows = [row * self.samples_per_prompt + j for row in batch.rows for j in range(self.samples_per_prompt)]
        seeds = [row_seed(self.seed, "train", batch.index, row) for row in rows]
        return RolloutRequest(batch.prompts, seeds, self.sampling, signals)

    def _generated(self, batch: PromptBatch, version: int, signals: frozenset[Signal]) -> Generated:
        """Return the episodes of a rollout batch: those that were generated ahead, or new ones."""
        ready = None if self.ahead is None else self.ahead.take(batch.index)
        if ready is not None:
            return ready
        request = self._request(batch, signals)
        if self._is_off_policy(batch):
            return Generated(self._generate_off_policy(request), version)
        return Generated(self._generate(request, version), version)

    def _begin(self, upcoming: PromptBatch | None, version: int, signals: frozenset[Signal]) -> None:
        """Begin to generate the next rollout batch with the student as it is now."""
        if self.ahead is None or upcoming is None or self._is_off_policy(upcoming):
            return
        self.engine.sync(self.learner.load_student(), version)
        rollout = partial(self._rollout, self.engine, self._request(upcoming, signals), is_shown=False)
        self.ahead.start(upcoming.index, version, rollout)

    def _generate(self, request: RolloutRequest, version: int) -> list[Episode]:
        if self.ahead is not None:
            self.ahead.wait()  # the engine gets other weights
        self.engine.use_tokenizer(self.learner.tokenizer)
        self.engine.sync(self.learner.load_student(), version)
        episodes, lost = list[Episode](), ServersDownError("The servers no longer answer another process of this run.")
        try:
            episodes = self._rollout(self.engine, request)
        except ServersDownError as error:
            lost = error
        if any_rank(not episodes):
            raise lost
        return episodes

    def _generate_off_policy(self, request: RolloutRequest) -> list[Episode]:
        assert self.off_policy is not None

        def rollout(engine: RolloutEngine, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Episode]:
            return self._rollout(engine, request._replace(prompts=prompts, seeds=seeds), len(request.seeds))

        context = GenerationContext(self.task, self.learner.teachers, self.learner.tokenizer, rollout)
        return self.off_policy.source.generate(request.prompts, request.seeds, context)

    def _rollout(
        self, engine: RolloutEngine, request: RolloutRequest, num_all: int = 0, *, is_shown: bool = True
    ) -> list[Episode]:
        teachers, total = self.learner.teachers, num_all or len(request.seeds)
        return generate_episodes(
            self.task,
            request.prompts,
            engine,
            self.learner.tokenizer,
            request.seeds,
            request.sampling,
            self.learner.load_language_model().max_length,
            (lambda num_done: self.on_progress("generate", num_done, total)) if is_shown else None,
            partial(teachers.begin, signals=request.signals) if teachers.score_elsewhere else None,
        )

    def _reward(self, episodes: Sequence[Episode], batch: PromptBatch, sampling: Sampling) -> SampledTokens:
        """Reward the episodes, and lay their tokens out as tensors."""
        learner, num_samples = self.learner, len(episodes) // len(batch.prompts)
        trajectories = [
            dataclasses.replace(t, split=batch.split, mode=batch.mode, is_repeat=i // num_samples >= batch.num_real)
            for i, t in enumerate(reward_episodes(episodes, self.task))
        ]
        weight = next(learner.load_student().parameters())
        return collate(
            trajectories,
            learner.teachers.ids([t.prompt for t in trajectories]),
            sampling.temperature or 1.0,
            padding_token_id(learner.tokenizer),
            torch.promote_types(weight.dtype, torch.float32),
            weight.device,
        )

    def _score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores | None:
        teachers = self.learner.teachers
        return teachers.score(tokens, signals) if len(teachers) else None

    def _join(
        self, tokens: SampledTokens, scores: TeacherScores | None, batch: PromptBatch, *, is_off_policy: bool = False
    ) -> RolloutBatch:
        num_samples = len(tokens) // len(batch.prompts)
        group_ids = [row for row in batch.rows for _ in range(num_samples)]
        names = self.learner.teachers.names
        return to_rollout_batch(tokens, scores, group_ids, names, is_off_policy=is_off_policy)
