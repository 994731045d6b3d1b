"""From episodes to tensors, from tensors and scores to a rollout batch, and from that to micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_opd.functional.length_groups import neighbour_groups
from lightning_opd.types import RolloutBatch, SampledTokens, TeacherScores, Trajectory


def collate(
    trajectories: Sequence[Trajectory],
    teacher_ids: Sequence[int],
    temperature: float,
    pad_token_id: int,
    dtype: torch.dtype,
    device: torch.device,
) -> SampledTokens:
    """Return episodes as one batch of tokens, padded on the right.

    Args:
        trajectories: The episodes, one row each.
        teacher_ids: Index of each row's teacher, -1 for none.
        temperature: Of the sampling.
        pad_token_id: Fills rows up.
        dtype: Of the log-probs.
        device: Where the batch will be used.
    """
    return SampledTokens.from_sequences(
        [trajectory.token_ids for trajectory in trajectories],
        [trajectory.response_mask for trajectory in trajectories],
        pad_token_id,
        dtype,
        device,
        logprobs=[trajectory.logprobs for trajectory in trajectories],
        teacher_ids=teacher_ids,
        temperature=temperature,
        trajectories=trajectories,
    )


def to_rollout_batch(
    tokens: SampledTokens,
    scores: TeacherScores | None,
    group_ids: Sequence[int],
    teacher_names: Sequence[str],
    *,
    is_off_policy: bool = False,
) -> RolloutBatch:
    """Join sampled tokens, the rewards of their episodes and the teachers' scores.

    The denominators are those of this rank; the caller sums them over ranks.

    Args:
        tokens: What the student sampled, with its episodes.
        scores: What the teachers answered; None where there is no teacher.
        group_ids: Equal for siblings of one prompt.
        teacher_names: What `teacher_ids` index.
        is_off_policy: Whether somebody else generated the responses.
    """
    dtype, device = tokens.rollout_logprobs.dtype, tokens.token_ids.device
    rewards = torch.tensor([t.reward for t in tokens.trajectories], dtype=dtype, device=device)
    own = {name: getattr(tokens, name) for name in SampledTokens.__dataclass_fields__}
    return RolloutBatch(
        **own,
        teacher_logprobs=torch.zeros_like(tokens.rollout_logprobs) if scores is None else scores.logprobs,
        aligned_mask=tokens.response_mask.clone() if scores is None else scores.aligned_mask,
        distill_mask=tokens.response_mask.clone(),
        distill_weights=torch.ones_like(rewards),
        outcome_advantages=torch.zeros_like(rewards),
        rewards=rewards,
        group_ids=torch.tensor(group_ids, device=device),
        is_truncated=torch.tensor([t.is_truncated for t in tokens.trajectories], device=device),
        has_format_error=torch.tensor([bool(t.format_errors) for t in tokens.trajectories], device=device),
        num_active_tokens=tokens.response_mask.sum().to(torch.float64),
        num_trajectories=torch.tensor(len(tokens), dtype=torch.float64, device=device),
        teacher_names=tuple(teacher_names),
        teacher_scores=scores,
        is_off_policy=is_off_policy,
    )


def balanced_parts(lengths: Sequence[int], num_parts: int) -> list[list[int]]:
    """Deal rows into parts of equal count (±1) and nearly equal total length.

    Example:
        >>> balanced_parts([9, 1, 8, 2], 2)
        [[0, 1], [2, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    for start in range(0, len(order), num_parts):
        dealt = order[start : start + num_parts]
        if (start // num_parts) % 2:
            dealt = dealt[::-1]
            parts_in_turn = parts[num_parts - len(dealt) :]
        else:
            parts_in_turn = parts
        for part, row in zip(parts_in_turn, dealt, strict=False):
            part.append(row)
    return [sorted(part) for part in parts]


def split(
    rollouts: RolloutBatch, num_updates: int, num_micro_batches: int, sum_over_ranks: Callable[[Tensor], Tensor]
) -> list[RolloutBatch]:
    """Split a rollout batch into `num_updates` × `num_micro_batches` micro-batches, in order of use.

    Each update gets rows of all lengths, equally many (±1). Inside an update the rows of a micro-batch are neighbours
    by length, the longest first, so that little is padded and the largest micro-batch is as small as can be.
    The denominators of a micro-batch are those of its own update over all ranks. The batch's metrics travel
    with the first micro-batch.
    """
    parts = [rollouts]
    if num_updates * num_micro_batches > 1:
        lengths: list[int] = rollouts.attention_mask.sum(dim=1).tolist()
        dealt = [
            [rows[i] for i in group]
            for rows in balanced_parts(lengths, num_updates)
            for group in neighbour_groups([lengths[row] for row in rows], num_micro_batches)
        ]
        parts = [rollouts.select(torch.tensor(rows, device=rollouts.token_ids.device)) for rows in dealt]
    for part in parts[1:]:
        part.metrics = {}
    if num_updates == 1:
        return parts
    for update in range(num_updates):
        chosen = parts[update * num_micro_batches : (update + 1) * num_micro_batches]
        tokens = torch.stack([part.response_mask.sum() for part in chosen]).sum().to(torch.float64)
        num_rows = tokens.new_tensor(sum(len(part) for part in chosen))
        tokens, num_rows = sum_over_ranks(tokens), sum_over_ranks(num_rows)
        for part in chosen:
            part.num_active_tokens, part.num_trajectories = tokens, num_rows
    return parts
