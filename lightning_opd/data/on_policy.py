"""On-policy rollouts as Lightning data: prompts in, scored micro-batches out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from typing_extensions import override

from lightning_opd.collection import Collector, Learner, OffPolicyResponses, RolloutPlan, RolloutProducer
from lightning_opd.collection.ahead import GenerationAhead
from lightning_opd.collection.prompt_limits import LongPrompts, PromptLimits
from lightning_opd.collection.prompt_report import PromptReport
from lightning_opd.collection.resume import describe, describe_engine, fingerprint
from lightning_opd.data.base import TrainerDataModule
from lightning_opd.data.evaluation import Evaluation, first_of_each_domain
from lightning_opd.data.limits import (
    COUNTS,
    batches_per_epoch,
    check_counts,
    check_stops,
    check_training,
    fit_micro_batches,
    shortest_context,
    tell_longest_row,
)
from lightning_opd.data.progress import RolloutProgress
from lightning_opd.data.prompt_loader import PromptBatches, PromptLoader, check_enough
from lightning_opd.data.prompt_splits import PromptSplits
from lightning_opd.data.resume_state import as_mapping, check_place, from_mapping, with_heads
from lightning_opd.errors import Problems
from lightning_opd.functional.length_groups import MAX_TOKENS_PER_FORWARD
from lightning_opd.interfaces import RolloutEngine, Task
from lightning_opd.models import gather_objects
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.servers import ServersDownError
from lightning_opd.types import Prompt, PromptBatch, RolloutBatch, Sampling, Split


class OPDDataModule(TrainerDataModule, RolloutProducer):
    """Produces a rollout batch whenever the trainer asks for its first micro-batch.

    What happens in one rollout batch is `lightning_opd.collection.Collector.collect`.

    Args:
        task: Prompts, rewards and format rules.
        prompts_per_batch: Prompts of one rollout batch over all processes.
        samples_per_prompt: Sibling rollouts per prompt.
        updates_per_batch: Optimiser steps per rollout batch; above 1 the later ones are off-policy.
        sampling: How the student draws. Its temperature is also that of all log-probs.
        engine: Generates the rollouts; by default in this process.
        evaluation: What validation, test and predict run over.
        off_policy_responses: A fraction of rollout batches that a data set or the teachers generate; null for none.
        seed: Of prompt order and noise; by default that of `seed_everything`, or 0.
        long_prompts: What becomes of a prompt that leaves no space for the reply, decided before any weight is
            loaded: `error`, `drop`, or `truncate_left` (the beginning of its longest message is left out).
        max_measured_prompts: Prompts of each split that are rendered and measured at the start, evenly spread, beside
            those with so many bytes that they might be too long; null for all. The processes share the work.
        max_tokens_per_forward: Most tokens, padding included, that the student reads at once where no gradient is
            needed; a longer trajectory is read alone. Teachers have a setting of their own.
        max_tokens_per_micro_batch: Most tokens, padding included, of a micro-batch in the update: sets
            `accumulate_grad_batches` by the longest prompt and reply that there may be; null leaves the trainer's.

    Attributes:
        prompt_reports: What the prompts of each split look like; there from `connect` on.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # settings, each a key in YAML
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
        long_prompts: LongPrompts = "error",
        max_measured_prompts: int | None = None,
        max_tokens_per_forward: int = MAX_TOKENS_PER_FORWARD,
        max_tokens_per_micro_batch: int | None = None,
    ) -> None:
        """Check the numbers; prompts are read in `connect`."""
        super().__init__()
        self.task, self.sampling, self.evaluation = task, sampling, evaluation
        self.prompts_per_batch, self.samples_per_prompt = prompts_per_batch, samples_per_prompt
        self.updates_per_batch, self.max_tokens_per_micro_batch = updates_per_batch, max_tokens_per_micro_batch
        self.max_measured_prompts, self.max_tokens_per_forward = max_measured_prompts, max_tokens_per_forward
        check_counts({name: getattr(self, name) for name in COUNTS})
        self.engine = engine if engine is not None else InProcessEngine()
        self.off_policy_responses, self.seed = off_policy_responses, seed
        self.long_prompts: LongPrompts = long_prompts
        self._splits = PromptSplits(task)
        self._collector: Collector | None = None
        self._micro_batches: list[RolloutBatch] = []
        self._loader: PromptLoader | None = None
        self._is_restored, self._num_served, self._hash = False, 0, ""

    @override
    def connect(self, learner: Learner) -> tuple[int, ...]:
        trainer, problems, length = self._trainer(), Problems(), None
        with problems.collecting():
            length = self.engine.connect()
        sampling = dataclasses.replace(
            self.sampling,
            max_episode_tokens=min((x for x in (self.sampling.max_episode_tokens, length) if x), default=None),
            stop_token_ids=self.sampling.stop_token_ids or learner.stop_token_ids,
            vocab_size=self.sampling.vocab_size or len(learner.tokenizer),
        )
        check_stops(sampling.stop_token_ids, len(learner.tokenizer))
        self._collector = Collector(
            learner,
            self.task,
            self.engine,
            sampling,
            self._run_seed(),
            self.samples_per_prompt,
            self.updates_per_batch,
            self.off_policy_responses,
            self._stage,
            RolloutProgress(trainer).show,
            self.max_tokens_per_forward,
            ahead=GenerationAhead() if self.engine.generates_ahead else None,
        )
        is_training = trainer.state.fn == "fit"
        evaluated: list[Split] = ["validation"] if trainer.state.fn == "validate" else self.evaluation.splits
        with problems.collecting():
            self._examine(["train", "validation", "test"] if is_training else evaluated)
        with problems.collecting():  # rows may have named mixtures
            learner.teachers.check_request(learner.objective.signals, sampling)
        with problems.collecting():
            if is_training:
                check_enough(len(self._splits.get("train")), self.prompts_per_batch)
                rows = self._per_rank("prompts_per_batch") * self.samples_per_prompt // self.updates_per_batch
                fit_micro_batches(trainer, self._splits.reports["train"], rows, self.max_tokens_per_micro_batch)
        with problems.collecting():
            if is_training:
                check_training(trainer, self._collector, self._per_rank("prompts_per_batch"))
        problems.raise_all()
        if is_training:
            tell_longest_row(self._splits.reports["train"], self.max_tokens_per_forward)
        if is_training and not self._splits.get("validation", may_be_empty=True):
            trainer.limit_val_batches = 0  # an empty loader is one that Lightning warns about
        return sampling.stop_token_ids

    @property
    def collector(self) -> Collector:
        """What makes the rollout batches; there from `connect` on."""
        return self._connected()

    @property
    def prompt_reports(self) -> Mapping[Split, PromptReport]:
        """What was found out about the prompts of each split; from `connect` on."""
        return self._splits.reports

    def fitting_prompts(self, split: Split) -> Sequence[Prompt]:
        """Return the prompts of a split that leave space for a reply; from `connect` on."""
        return self._splits.get(split, may_be_empty=True)

    def _examine(self, splits: Sequence[Split]) -> None:
        learner, own = self.collector.learner, self.collector.sampling
        most, source = shortest_context(learner.max_length, self.sampling.max_episode_tokens, own.max_episode_tokens)
        limits = PromptLimits(own.max_new_tokens, most, self.long_prompts, self.max_measured_prompts)
        limits = dataclasses.replace(limits, max_turns=own.max_turns, source=source)
        self._splits.examine(splits, learner, limits, *self._data_rank())

    @override
    def plan(self) -> RolloutPlan:
        collector = self._connected()
        return RolloutPlan(
            collector.learner,
            self._splits.fitting,
            self.prompts_per_batch,
            self.samples_per_prompt,
            self.updates_per_batch,
            collector.sampling,
        )

    @override
    def train_dataloader(self) -> PromptLoader:
        trainer, (rank, num_ranks) = self._trainer(), self._data_rank()
        prompts = self._splits.get("train")
        micro_batches = trainer.accumulate_grad_batches * self.updates_per_batch
        self._loader = PromptLoader(
            prompts,
            self.prompts_per_batch,
            micro_batches,
            self._connected().seed,
            rank,
            num_ranks,
            batches_per_epoch(trainer, len(prompts) // self.prompts_per_batch, micro_batches),
            is_repeating=bool(trainer.overfit_batches),  # type: ignore[attr-defined]  # set by Lightning at run time
        )
        return self._loader

    @override
    def val_dataloader(self) -> PromptBatches | list[PromptBatches]:
        prompts = self._splits.get("validation", may_be_empty=True)
        if not prompts:
            return []
        chosen = first_of_each_domain(prompts, self.evaluation.num_validation_prompts)
        return PromptBatches([("validation", "sampled", chosen)], self.evaluation.batch_size, *self._data_rank())

    @override
    def test_dataloader(self) -> PromptBatches:
        parts = [
            (split, mode, first_of_each_domain(self._splits.get(split), self.evaluation.num_prompts))
            for split in self.evaluation.splits
            for mode in self.evaluation.modes
        ]
        return PromptBatches(parts, self.evaluation.batch_size, *self._data_rank())

    @override
    def predict_dataloader(self) -> PromptBatches:
        return self.test_dataloader()

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # prompts are not tensors; rollouts are made on the device

    @override
    def on_after_batch_transfer(self, batch: PromptBatch, dataloader_idx: int) -> RolloutBatch:
        trainer, collector = self._trainer(), self._connected()
        if not trainer.training:
            return collector.evaluate(batch, trainer.global_step)
        if batch.micro_batch == 0:
            step, (callbacks, signals) = trainer.global_step, self._rollout_callbacks()
            is_last = step + self.updates_per_batch >= trainer.estimated_stepping_batches
            is_ahead = self.engine.generates_ahead and not is_last
            upcoming = self._loader.upcoming() if is_ahead and self._loader is not None else None
            try:
                self._micro_batches = collector.collect(
                    batch, step, trainer.accumulate_grad_batches, callbacks, signals, upcoming
                )
            except ServersDownError:  # nothing was trained on: a checkpoint saved now asks for this batch again
                if self._loader is not None:
                    self._loader.put_back()
                raise
        elif self._is_restored:
            heads = collector.learner.teachers.heads()
            self._micro_batches = [with_heads(micro_batch, heads) for micro_batch in self._micro_batches]
        self._is_restored = False
        self._num_served = batch.micro_batch + 1
        return self._micro_batches[batch.micro_batch]

    @override
    def resume_settings(self) -> dict[str, object]:
        settings: dict[str, object] = {"data.task": type(self.task).__qualname__, "data.seed": self._run_seed()}
        names = ("prompts_per_batch", "samples_per_prompt", "updates_per_batch", "off_policy_responses", "sampling")
        own = {"engine": describe_engine(self.engine)} | {name: describe(getattr(self, name)) for name in names}
        settings |= {f"data.{name}": value for name, value in own.items()}
        if self.updates_per_batch > 1 and self.trainer is not None:  # each process deals its own rows into updates
            settings["trainer.devices"] = self.trainer.world_size
        if "train" in self._splits.fitting:
            settings["data.task.prompts"] = self._hash = self._hash or fingerprint(self._splits.fitting["train"])
        return settings

    @override
    def state_dict(self) -> dict[str, Any]:
        """Keep the rest of a rollout batch that serves several updates; its tensors, never its texts."""
        if not self._micro_batches[self._num_served :]:
            return {}
        rest = [as_mapping(micro_batch) for micro_batch in self._micro_batches[self._num_served :]]
        return {"first": self._num_served, "micro_batches": gather_objects(rest)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "micro_batches" not in state_dict:
            return
        trainer, (rank, num_ranks), parts = self._trainer(), self._data_rank(), state_dict["micro_batches"]
        first = state_dict.get("first", 0)
        saved, expected = first + len(parts[0]), trainer.accumulate_grad_batches * self.updates_per_batch
        check_place((saved, len(parts)), (expected, num_ranks))
        rest = [from_mapping(state, trainer.strategy.root_device) for state in parts[rank]]
        self._micro_batches, self._num_served, self._is_restored = [*rest[:1] * first, *rest], first, True

    @override
    def teardown(self, stage: str) -> None:
        self._micro_batches, self._hash = [], ""
        self.engine.close()
        if self._collector is not None and self._collector.ahead is not None:
            self._collector.ahead.close()

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Profile a stage inside the precision that the training step will use, without gradients."""
        trainer = self._trainer()
        RolloutProgress(trainer).begin(name)
        with trainer.profiler.profile(name), trainer.precision_plugin.forward_context(), torch.no_grad():  # type: ignore[attr-defined]  # set by Lightning at run time
            yield

    def _connected(self) -> Collector:
        if self._collector is None:
            msg = "OPDDataModule produces the rollouts of an OPDModule; give the trainer one as its model."
            raise RuntimeError(msg)
        return self._collector
