"""What a graded window says about itself, as sums and counts that add up over ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_opd.types import RolloutBatch


def window_statistics(
    window: RolloutBatch, rollout_seconds: float, score_seconds: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return `name → (sum, count)` over this rank's rows.

    Rewards, truncation, format errors and turns are per trajectory, lengths in tokens, the entropy estimate
    in nats per token, `time/…` in seconds per window; `token_share` is each teacher's share of the
    response tokens. What a data set or a teacher wrote goes under `given/…` instead of `train/…`.
    """
    stage = "given" if window.is_given else "train"
    rows = torch.ones_like(window.rewards, dtype=torch.float64)
    lengths = window.response_mask.sum(dim=1).to(torch.float64)
    one = rows.new_ones(())
    num_turns = sum(len(trajectory.turns) for trajectory in window.trajectories)
    statistics = {
        f"{stage}/reward": (window.rewards.double().sum(), rows.sum()),
        f"{stage}/truncated": (window.is_truncated.double().sum(), rows.sum()),
        f"{stage}/format_errors": (window.has_format_error.double().sum(), rows.sum()),
        f"{stage}/response_length": (lengths.sum(), rows.sum()),
        f"{stage}/turns": (one * num_turns, rows.sum()),
        f"{stage}/entropy_estimate": (-window.rollout_logprobs.double().sum(), lengths.sum()),
        "time/rollout": (one * rollout_seconds, one),
        "time/score": (one * score_seconds, one),
    }
    for index, name in enumerate(window.teacher_names):
        own = window.teacher_ids == index
        statistics[f"{stage}/reward/{name}"] = (window.rewards.double()[own].sum(), rows[own].sum())
        statistics[f"{stage}/response_length/{name}"] = (lengths[own].sum(), rows[own].sum())
        statistics[f"{stage}/token_share/{name}"] = (lengths[own].sum(), lengths.sum())
    graded = {} if window.teacher_scores is None else window.teacher_scores.metrics
    return {**statistics, **{f"{stage}/{name}": pair for name, pair in graded.items()}}
