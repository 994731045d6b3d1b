"""Settings that would cut a rollout batch, or teach something else: refused before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning as L  # Lightning's own convention
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_opd.collection import Collector
from lightning_opd.collection.prompt_report import PromptReport
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import OPDCallback
from lightning_opd.types import RunSettings

COUNTS = (
    "prompts_per_batch",
    "samples_per_prompt",
    "updates_per_batch",
    "max_measured_prompts",
    "max_tokens_per_forward",
    "max_tokens_per_micro_batch",
)
"""Settings that are at least 1."""


def check_counts(counts: Mapping[str, int | None]) -> None:
    """Refuse settings of a data module that are below 1; None is no limit.

    Raises:
        ConfigError: With the first of them.
    """
    for name, value in counts.items():
        if value is not None and value < 1:
            msg = f"`data.{name}` must be at least 1, got {value}."
            raise ConfigError(msg)


def check_training(trainer: L.Trainer, collector: Collector, prompts_per_rank: int) -> None:
    """Refuse settings of a training run that do not go together.

    Raises:
        ValueError: With the setting, its value and the cure.
    """
    check_batch_limits(trainer, collector.updates_per_batch, prompts_per_rank * collector.samples_per_prompt)
    if collector.ahead is not None and trainer.world_size > 1:
        msg = (
            f"The engine generates ahead (`overlap: 1`) in one process only, got {trainer.world_size}. Set "
            "`data.engine.init_args.overlap` to 0, or `trainer.devices` to 1."
        )
        raise ConfigError(msg)
    if collector.sampling.temperature == 0:
        msg = (
            "Training samples must be drawn, got temperature 0 (greedy). Use a positive temperature; greedy is for "
            "`test` and `predict`."
        )
        raise ConfigError(msg)
    callbacks = [c for c in trainer.callbacks if isinstance(c, OPDCallback)]  # type: ignore[attr-defined]  # set by Lightning
    learner, off_policy = collector.learner, collector.off_policy
    if off_policy is not None:
        off_policy.source.check(learner.teachers)
    comparing = [type(callback).__name__ for callback in callbacks if callback.needs_siblings]
    comparing += [f"The baseline of {type(learner.objective).__name__}"] if learner.objective.needs_siblings else []
    if comparing and collector.samples_per_prompt < 2:
        msg = (
            f"{comparing[0]} compares the siblings of a prompt, got `data.samples_per_prompt` "
            f"{collector.samples_per_prompt}. Set it to 2 or more."
        )
        raise ConfigError(msg)
    settings = RunSettings(
        updates_per_batch=collector.updates_per_batch,
        draws_from_student=collector.sampling.keeps_the_distribution and collector.engine.is_exact,
        off_policy_fraction=0.0 if off_policy is None else off_policy.fraction,
        has_outcome=any(callback.adds_outcome for callback in callbacks),
        has_reference=learner.reference is not None,
        has_critic=learner.value is not None,
        teacher_names=learner.teachers.names,
    )
    learner.objective.check(settings)
    for callback in callbacks:
        callback.check(settings, learner.objective.signals)


def check_stops(stop_token_ids: Sequence[int], num_tokens: int) -> None:
    """Refuse stop tokens that the tokenizer does not have, at which no response would ever end.

    Raises:
        ConfigError: With the wrong ids.
    """
    unknown = [token_id for token_id in stop_token_ids if not 0 <= token_id < num_tokens]
    if unknown:
        msg = (
            f"`sampling.stop_token_ids` names {unknown}, but the tokenizer's ids go from 0 to {num_tokens - 1}. Leave "
            "it out for those that the model declares."
        )
        raise ConfigError(msg)


def check_batch_limits(trainer: L.Trainer, updates_per_batch: int, rows_per_rank: int) -> None:
    """Refuse settings that would end an epoch, or an optimiser step, inside a rollout batch.

    Raises:
        ValueError: With the setting, its value and what would fit.
    """
    micro_batches = trainer.accumulate_grad_batches * updates_per_batch
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]  # set by Lightning
        msg = (
            "GradientAccumulationScheduler would change the number of micro-batches per rollout batch while training. "
            "Remove it and set a constant `trainer.accumulate_grad_batches`."
        )
        raise ConfigError(msg)
    if micro_batches > rows_per_rank:
        msg = (
            f"A rollout batch has {rows_per_rank} trajectories per process, which cannot be cut into {micro_batches} "
            f"micro-batches (`accumulate_grad_batches` {trainer.accumulate_grad_batches} × `updates_per_batch` "
            f"{updates_per_batch}). Raise `data.prompts_per_batch`, or lower one of the two."
        )
        raise ConfigError(msg)
    # a smoke test may end anywhere
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning at run time
        return
    for name in ("overfit_batches", "limit_train_batches"):  # the first sets the second
        limit = getattr(trainer, name)
        if isinstance(limit, int) and limit % micro_batches:
            below = limit // micro_batches * micro_batches
            msg = (
                f"`{name}` is {limit}, which would cut a rollout batch: one is {micro_batches} micro-batches "
                f"(`accumulate_grad_batches` × `updates_per_batch`). Use a multiple, for example "
                f"{below or micro_batches}."
            )
            raise ConfigError(msg)


def batches_per_epoch(trainer: L.Trainer, num_batches: int, micro_batches: int) -> int:
    """Return how many rollout batches the trainer will take per epoch.

    Raises:
        ValueError: A fraction of the batches that would cut a rollout batch.
    """
    limit = trainer.overfit_batches or trainer.limit_train_batches  # type: ignore[attr-defined]  # set by Lightning at run time
    if isinstance(limit, int):
        return max(1, min(limit // micro_batches, num_batches))
    num_batches = int(num_batches * micro_batches * limit)
    if num_batches % micro_batches and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning at run time
        msg = (
            f"Limiting the epoch to {limit} of it leaves {num_batches} of {num_batches * micro_batches} batches, "
            f"which would cut a rollout batch of {micro_batches} micro-batches. Use a whole number that is a multiple."
        )
        raise ConfigError(msg)
    return max(1, num_batches // micro_batches)


def shortest_context(student: int, setting: int | None, with_engine: int | None) -> tuple[int, str]:
    """Return the most tokens of a prompt with its reply, and what allows no more, in the user's words.

    Args:
        student: Positions that the student has.
        setting: `data.sampling.max_episode_tokens`.
        with_engine: The smaller of it and what the engine has positions for.
    """
    lengths = {
        "the student's context": student,
        "`data.sampling.max_episode_tokens`": setting,
        "the engine's context (vLLM's `--max-model-len`)": with_engine,
    }
    name, length = min(((name, x) for name, x in lengths.items() if x is not None), key=lambda pair: pair[1])
    return length, name


def fit_micro_batches(trainer: L.Trainer, report: PromptReport, rows_per_update: int, max_tokens: int | None) -> None:
    """Set `accumulate_grad_batches` so that no micro-batch can have more tokens than it may.

    Args:
        trainer: The one that trains.
        report: Of the prompts that are trained on.
        rows_per_update: Trajectories of an optimiser step and process.
        max_tokens: Of a micro-batch, padding included; None leaves the trainer's setting.

    Raises:
        ConfigError: The trainer's setting is another one.
    """
    if max_tokens is None:
        return
    rows = rows_within(max_tokens, longest_row(report), rows_per_update)
    needed = -(-rows_per_update // rows)
    if trainer.accumulate_grad_batches not in {1, needed}:
        msg = (
            f"`data.max_tokens_per_micro_batch` {max_tokens:,} asks for {needed} micro-batches, got "
            f"`trainer.accumulate_grad_batches` {trainer.accumulate_grad_batches}. Set one of the two."
        )
        raise ConfigError(msg)
    trainer.accumulate_grad_batches = needed
    rank_zero_info(
        f"{needed} micro-batch{'es' if needed > 1 else ''} an optimiser step, for {rows_per_update} rows of up to "
        f"{longest_row(report):,} tokens: each with at most {max_tokens:,} tokens, or a single row."
    )


def rows_within(max_tokens: int, longest: int, rows_per_update: int) -> int:
    """Return how many rows of at most `longest` tokens a micro-batch of so many tokens holds; at least one."""
    return min(rows_per_update, max(1, max_tokens // longest))


def longest_row(report: PromptReport) -> int:
    """Return the most tokens that the longest prompt may have with its reply, or an episode of several turns."""
    longest = min(report.lengths[-1] + report.max_new_tokens, report.max_length)
    return report.max_length if report.has_episodes else longest


def tell_longest_row(report: PromptReport, max_tokens_per_forward: int) -> None:
    """Say how long a trajectory may get, where that is more than a forward holds: nothing else can be too big.

    Args:
        report: Of the prompts that are trained on.
        max_tokens_per_forward: Tokens that a forward of the student holds.
    """
    longest = longest_row(report)
    if longest > max_tokens_per_forward:
        rank_zero_info(
            f"The longest {'episode' if report.has_episodes else 'prompt with its reply'} may have {longest:,} tokens, "
            f"more than the {max_tokens_per_forward:,} of `data.max_tokens_per_forward`: such a row is read alone, and "
            "is all that can be too big. Lower `data.sampling.max_new_tokens` if it is."
        )
