"""On-policy rollouts as Lightning data: prompts in, scored rollout batchs out."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import lightning as L  # Lightning's own convention
import torch
from torch import Tensor
from typing_extensions import override

from lightning_opd.data.collate import collate, cut
from lightning_opd.data.distiller import Distiller, check_objective, check_shapes
from lightning_opd.data.evaluation import Evaluation, first_of_each_domain
from lightning_opd.data.limits import batches_per_epoch, check_batch_limits
from lightning_opd.data.off_policy import GenerationContext, OffPolicyResponses
from lightning_opd.data.progress import RolloutProgress
from lightning_opd.data.prompt_loader import PromptBatch, PromptBatches, PromptLoader
from lightning_opd.data.resume_state import as_mapping, from_mapping
from lightning_opd.data.statistics import rollout_statistics
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import OPDCallback, RolloutEngine, Split, Task
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.rollouts.episodes import run_episodes
from lightning_opd.rollouts.noise import row_seed
from lightning_opd.tokenization.chat import stop_token_ids
from lightning_opd.types import Prompt, RolloutBatch, Sampling, Trajectory

if TYPE_CHECKING:
    pass


class OPDDataModule(L.LightningDataModule):
    """Writes, judges and scores a rollout batch of rollouts whenever the trainer asks for its first micro-batch.

    Args:
        task: Prompts, outcome and format rules.
        prompts_per_batch: Prompts of one rollout batch over all processes.
        samples_per_prompt: Sibling rollouts per prompt.
        updates_per_batch: Optimiser steps per rollout batch; above 1 the later ones are off-policy.
        sampling: How the student draws. Its temperature is also that of all log-probs.
        engine: Writes the rollouts; by default in this process.
        evaluation: What validation, test and predict run over.
        off_policy_responses: A fraction of rollout batches that a data set or the teachers generate; null for none.
        seed: Of prompt order and noise; by default that of `seed_everything`, or 0.
    """

    def __init__(
        self,
        task: Task,
        prompts_per_batch: int = 64,
        samples_per_prompt: int = 1,
        updates_per_batch: int = 1,
        sampling: Sampling = Sampling(),  # frozen, hence safe to share
        engine: RolloutEngine | None = None,
        evaluation: Evaluation = Evaluation(),  # frozen, hence safe to share
        off_policy_responses: OffPolicyResponses | None = None,
        seed: int | None = None,
    ) -> None:
        """Check the numbers; prompts are read in `setup`."""
        super().__init__()
        for name, value in (
            ("prompts_per_batch", prompts_per_batch),
            ("samples_per_prompt", samples_per_prompt),
            ("updates_per_batch", updates_per_batch),
        ):
            if value < 1:
                msg = f"`data.{name}` must be at least 1, got {value}."
                raise ConfigError(msg)
        self.task, self.sampling, self.evaluation = task, sampling, evaluation
        self.prompts_per_batch, self.samples_per_prompt = prompts_per_batch, samples_per_prompt
        self.updates_per_batch = updates_per_batch
        self.engine = engine if engine is not None else InProcessEngine()
        self.off_policy_responses, self.seed = off_policy_responses, seed
        self._micro_batches: list[RolloutBatch] = []

    # --- what Lightning calls --------------------------------------------------------------------

    @override
    def setup(self, stage: str) -> None:
        module = self._module()
        self._sampling = dataclasses.replace(
            self.sampling,
            stop_token_ids=self.sampling.stop_token_ids or stop_token_ids(module.tokenizer),
            vocab_size=self.sampling.vocab_size or len(module.tokenizer),
        )
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if self.seed is None else self.seed
        if stage == "fit":
            self._check_training(module)
        elif len(module.teachers):  # without any, an evaluation scores nothing
            splits: list[Split] = self.evaluation.splits if stage in ("test", "predict") else ["validation"]
            for split in splits:
                module.teachers.check_routes(self.task.prompts(split))

    def _check_training(self, module: Distiller) -> None:
        trainer = self._trainer()
        _, num_ranks = self._place()
        if self.prompts_per_batch % num_ranks:
            msg = (
                f"`data.prompts_per_batch` is {self.prompts_per_batch}, which {num_ranks} processes cannot fraction "
                f"equally. Use a multiple of {num_ranks}."
            )
            raise ConfigError(msg)
        rows = self.prompts_per_batch // num_ranks * self.samples_per_prompt
        check_batch_limits(trainer, self.updates_per_batch, rows)
        if self._sampling.temperature == 0:
            msg = (
                "Training samples must be drawn, got temperature 0 (greedy). Use a positive temperature; greedy is for "
                "`test` and `predict`."
            )
            raise ConfigError(msg)
        is_exact = self._sampling.top_p == 1 and self.engine.is_exact
        check_objective(trainer, module, self.updates_per_batch, self.off_policy_responses, is_exact=is_exact)
        validation = self._prompts("validation", may_be_empty=True)
        if len(module.teachers):
            module.teachers.check_routes(self._prompts("train"))
            module.teachers.check_routes(validation)
        if not validation:
            trainer.limit_val_batches = 0  # an empty loader is one that Lightning warns about

    @override
    def train_dataloader(self) -> PromptLoader:
        trainer, (rank, num_ranks) = self._trainer(), self._place()
        prompts = self._prompts("train")
        micro_batches = trainer.accumulate_grad_batches * self.updates_per_batch
        return PromptLoader(
            prompts,
            self.prompts_per_batch,
            micro_batches,
            self._seed,
            rank,
            num_ranks,
            batches_per_epoch(trainer, len(prompts) // self.prompts_per_batch, micro_batches),
            is_repeating=bool(trainer.overfit_batches),  # type: ignore[attr-defined]  # set by Lightning at run time
        )

    @override
    def val_dataloader(self) -> PromptBatches | list[PromptBatches]:
        prompts = self._prompts("validation", may_be_empty=True)
        if not prompts:
            return []
        return self._evaluation_batches([("validation", "sampled", prompts)], self.evaluation.num_validation_prompts)

    @override
    def test_dataloader(self) -> PromptBatches:
        parts = [
            (split, mode, self._prompts(split)) for split in self.evaluation.splits for mode in self.evaluation.modes
        ]
        return self._evaluation_batches(parts, self.evaluation.num_prompts)

    @override
    def predict_dataloader(self) -> PromptBatches:
        return self.test_dataloader()

    def _evaluation_batches(
        self, parts: Sequence[tuple[Split, str, Sequence[Prompt]]], num_prompts: int | dict[str, int] | None
    ) -> PromptBatches:
        chosen = [(split, mode, first_of_each_domain(prompts, num_prompts)) for split, mode, prompts in parts]
        return PromptBatches(chosen, self.evaluation.batch_size, *self._place())

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # prompts are not tensors; rollouts are made on the device

    @override
    def on_after_batch_transfer(self, batch: PromptBatch, dataloader_idx: int) -> RolloutBatch:
        if not self._trainer().training:
            return self._evaluate(batch)
        if batch.micro_batch == 0:
            self._micro_batches = self._make_rollouts(batch)
        return self._micro_batches[batch.micro_batch]

    @override
    def state_dict(self) -> dict[str, Any]:
        """Keep the rest of a rollout batch that several updates share; its tensors, never its texts."""
        if self.updates_per_batch == 1 or not self._micro_batches:
            return {}
        own = [dataclasses.replace(m, trajectories=(), metrics={}) for m in self._micro_batches]
        rollout_batches = [[as_mapping(m) for m in own]]
        _, num_ranks = self._place()
        if num_ranks > 1:
            gathered: list[Any] = [None] * num_ranks
            torch.distributed.all_gather_object(gathered, rollout_batches[0])
            rollout_batches = gathered
        return {"rollout_batches": rollout_batches}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "rollout_batches" in state_dict:
            rank, _ = self._place()
            self._micro_batches = [from_mapping(m) for m in state_dict["rollout_batches"][rank]]

    @override
    def teardown(self, stage: str) -> None:
        self._micro_batches = []
        self.engine.close()

    # --- one rollout batch ------------------------------------------------------------------------------

    def _make_rollouts(self, batch: PromptBatch) -> list[RolloutBatch]:
        """Roll out, score, let the callbacks see the whole rollout batch, and cut it."""
        trainer, module = self._trainer(), self._module()
        num_samples = self.samples_per_prompt
        seeds = [
            row_seed(self._seed, "train", batch.index, row * num_samples + j)
            for row in batch.rows
            for j in range(num_samples)
        ]
        is_off_policy = self.off_policy_responses is not None and self.off_policy_responses.covers(
            self._seed, batch.index
        )
        rollouts, seconds = self._roll_out(batch, seeds, self._sampling, is_off_policy=is_off_policy)
        rollouts.is_off_policy = is_off_policy
        statistics = rollout_statistics(rollouts, *seconds)
        rollouts.num_active_tokens = self._sum_over_ranks(rollouts.num_active_tokens)
        rollouts.num_trajectories = self._sum_over_ranks(rollouts.num_trajectories)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by Lightning
            if isinstance(callback, OPDCallback):
                callback.on_rollout_end(trainer, cast("L.LightningModule", module), rollouts)
                check_shapes(rollouts, callback)
        with self._stage("prepare"):
            module.prepare(rollouts, self.updates_per_batch)
        rollouts.metrics = {**statistics, **rollouts.metrics}
        micro_batches = cut(rollouts, self.updates_per_batch, trainer.accumulate_grad_batches)
        for part in micro_batches:
            if self.updates_per_batch > 1:
                part.num_active_tokens = self._sum_over_ranks(part.num_active_tokens)
                part.num_trajectories = self._sum_over_ranks(part.num_trajectories)
            else:
                part.num_active_tokens, part.num_trajectories = rollouts.num_active_tokens, rollouts.num_trajectories
        return micro_batches

    def _evaluate(self, batch: PromptBatch) -> RolloutBatch:
        num_samples = 1
        seeds = [
            row_seed(self._seed, batch.split, prompt.key, j) for prompt in batch.prompts for j in range(num_samples)
        ]
        sampling = self._sampling
        if batch.mode == "greedy":
            sampling = dataclasses.replace(sampling, temperature=0.0)
        return self._roll_out(batch, seeds, sampling)[0]

    def _roll_out(
        self, batch: PromptBatch, seeds: Sequence[int], sampling: Sampling, *, is_off_policy: bool = False
    ) -> tuple[RolloutBatch, tuple[float, float]]:
        """Write, judge and score episodes; return them and the seconds of rollout and scoring."""
        trainer, module = self._trainer(), self._module()
        num_samples, progress = len(seeds) // len(batch.prompts), RolloutProgress(trainer)

        def play(engine: RolloutEngine, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Trajectory]:
            return run_episodes(
                self.task,
                prompts,
                engine,
                module.tokenizer,
                seeds,
                sampling,
                module.language_model.max_length,
                lambda num_done: progress.show("rollout", num_done, len(seeds)),
            )

        with self._stage("rollout") as rollout_time:
            if is_off_policy and self.off_policy_responses is not None:
                context = GenerationContext(self.task, module.teachers, module.tokenizer, play)
                trajectories = self.off_policy_responses.source.generate(batch.prompts, seeds, context)
            else:
                self.engine.sync(module.student, trainer.global_step)
                trajectories = play(self.engine, batch.prompts, seeds)
        trajectories = [
            dataclasses.replace(t, split=batch.split, mode=batch.mode, is_repeat=i // num_samples >= batch.num_real)
            for i, t in enumerate(trajectories)
        ]
        rollouts = self._collate(trajectories, batch, sampling)
        with self._stage("score") as score_time:
            if len(module.teachers):
                scores = module.score(rollouts)
                rollouts.teacher_logprobs, rollouts.aligned_mask = scores.logprobs, scores.aligned_mask
                rollouts.teacher_scores = scores
        return rollouts, (rollout_time[0], score_time[0])

    def _collate(self, trajectories: list[Trajectory], batch: PromptBatch, sampling: Sampling) -> RolloutBatch:
        module, num_samples = self._module(), len(trajectories) // len(batch.prompts)
        weight = next(module.student.parameters())
        return collate(
            trajectories,
            [row for row in batch.rows for _ in range(num_samples)],
            module.teachers.ids([t.prompt for t in trajectories]),
            module.teachers.names,
            sampling.temperature or 1.0,
            int(cast("int", module.tokenizer.pad_token_id)),
            torch.promote_types(weight.dtype, torch.float32),
            weight.device,
        )

    @contextmanager
    def _stage(self, name: str) -> Iterator[list[float]]:
        """Profile and time a stage inside the precision the training step will use."""
        trainer, seconds = self._trainer(), [0.0]
        started = time.perf_counter()
        with trainer.profiler.profile(name), trainer.precision_plugin.forward_context(), torch.no_grad():  # type: ignore[attr-defined]  # set by Lightning at run time
            yield seconds
        seconds[0] = time.perf_counter() - started

    # --- what is around it -----------------------------------------------------------------------

    def _trainer(self) -> L.Trainer:
        if self.trainer is None:
            msg = "OPDDataModule works inside a Trainer; call `trainer.fit(module, datamodule)`."
            raise RuntimeError(msg)
        return self.trainer

    def _module(self) -> Distiller:
        return cast("Distiller", self._trainer().lightning_module)

    def _place(self) -> tuple[int, int]:
        """Return this process's rank among those that fraction the data, and their number."""
        kwargs = self._trainer().distributed_sampler_kwargs or {}
        return kwargs.get("rank", 0), kwargs.get("num_replicas", 1)

    def _prompts(self, split: Split, *, may_be_empty: bool = False) -> Sequence[Prompt]:
        prompts = self.task.prompts(split)
        if not prompts and not may_be_empty:
            msg = f"{type(self.task).__name__} has no prompts in the `{split}` split. Give it some, or choose another."
            raise ConfigError(msg)
        return prompts

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        if self._trainer().world_size == 1:
            return value
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total
