"""What a scored rollout batch says about itself, as sums and counts that add up over ranks."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_opd.models import LanguageModel
from lightning_opd.types import RolloutBatch, Trajectory


class Stopwatch:
    """Measures the seconds spent inside it."""

    seconds = 0.0

    def __enter__(self) -> Stopwatch:
        """Start."""
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self._started


def rollout_statistics(
    rollouts: RolloutBatch, rollout_seconds: float, score_seconds: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return `name → (sum, count)` over this rank's rows.

    Rewards, truncation, format errors, turns and `tool_calls` (those that a tool answered) are per trajectory,
    lengths in tokens, the entropy estimate in nats per token, `time/…` in seconds per rollout batch;
    `token_fraction` is each teacher's fraction of the response tokens. What a data set or a teacher generated goes
    under `off_policy/…` instead of `train/…`.
    """
    stage = "off_policy" if rollouts.is_off_policy else "train"
    rows = torch.ones_like(rollouts.rewards, dtype=torch.float64)
    lengths = rollouts.response_mask.sum(dim=1).to(torch.float64)
    one = rows.new_ones(())
    tool_calls = rows.new_tensor([_tool_calls(trajectory) for trajectory in rollouts.trajectories])
    num_turns = sum(len(trajectory.turns) for trajectory in rollouts.trajectories)
    statistics = {
        f"{stage}/reward": (rollouts.rewards.double().sum(), rows.sum()),
        f"{stage}/truncated": (rollouts.is_truncated.double().sum(), rows.sum()),
        f"{stage}/format_errors": (rollouts.has_format_error.double().sum(), rows.sum()),
        f"{stage}/response_length": (lengths.sum(), rows.sum()),
        f"{stage}/turns": (one * num_turns, rows.sum()),
        f"{stage}/tool_calls": (tool_calls.sum(), rows.sum()),
        f"{stage}/entropy_estimate": (-rollouts.rollout_logprobs.double().sum(), lengths.sum()),
        "time/rollout": (one * rollout_seconds, one),
        "time/score": (one * score_seconds, one),
    }
    for index, name in enumerate(rollouts.teacher_names):
        own = rollouts.teacher_ids == index
        statistics[f"{stage}/reward/{name}"] = (rollouts.rewards.double()[own].sum(), rows[own].sum())
        statistics[f"{stage}/response_length/{name}"] = (lengths[own].sum(), rows[own].sum())
        statistics[f"{stage}/tool_calls/{name}"] = (tool_calls[own].sum(), rows[own].sum())
        statistics[f"{stage}/token_fraction/{name}"] = (lengths[own].sum(), lengths.sum())
    scored = {} if rollouts.teacher_scores is None else rollouts.teacher_scores.metrics
    return {**statistics, **{f"{stage}/{name}": pair for name, pair in scored.items()}}


def staleness(num_steps: int, rollouts: RolloutBatch) -> tuple[Tensor, Tensor]:
    """Return how many optimiser steps older than the student the weights were that generated a rollout batch."""
    one = rollouts.rewards.new_ones((), dtype=torch.float64)
    return one * num_steps, one


def padding(micro_batches: Sequence[RolloutBatch], model: LanguageModel) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the tokens that the student's layers read in the updates, padding included, over the real ones."""
    stage = "off_policy" if micro_batches[0].is_off_policy else "train"
    num_real = torch.stack([part.attention_mask.sum() for part in micro_batches]).sum().double()
    num_read = sum(model.padded_tokens(part.attention_mask) for part in micro_batches)
    return {f"{stage}/update_padding": (num_real.new_tensor(num_read), num_real)}


def _tool_calls(trajectory: Trajectory) -> int:
    """Return how many messages of tools the replies read, beside those of the prompt."""
    if not trajectory.turns:
        return 0
    chats = (trajectory.turns[-1].messages, trajectory.prompt.messages)
    last, first = (sum(message.get("role") == "tool" for message in chat) for chat in chats)
    return last - first
