"""From finished episodes to a rollout batch of tensors, and from a rollout batch to balanced micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_opd.types import RolloutBatch, Trajectory


def collate(
    trajectories: Sequence[Trajectory],
    group_ids: Sequence[int],
    teacher_ids: Sequence[int],
    teacher_names: Sequence[str],
    temperature: float,
    pad_token_id: int,
    dtype: torch.dtype,
    device: torch.device,
) -> RolloutBatch:
    """Return an unscored rollout batch, right padded: teachers' log-probs are 0 until they are scored.

    Args:
        trajectories: The episodes, one row each.
        group_ids: Equal for siblings of one prompt.
        teacher_ids: Index of each row's teacher, -1 for none.
        teacher_names: What the indices stand for.
        temperature: Of the sampling.
        pad_token_id: Fills rows up.
        dtype: Of the floating-point columns.
        device: Where the rollout batch will be used.
    """
    longest = max(len(t.token_ids) for t in trajectories)
    token_ids = torch.full((len(trajectories), longest), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(len(trajectories), longest, dtype=torch.bool)
    response_mask = torch.zeros_like(attention_mask)
    logprobs = torch.zeros(len(trajectories), longest, dtype=dtype)
    for row, trajectory in enumerate(trajectories):
        length = len(trajectory.token_ids)
        token_ids[row, :length] = torch.tensor(trajectory.token_ids)
        attention_mask[row, :length] = True
        response_mask[row, :length] = torch.tensor(trajectory.response_mask)
        logprobs[row, :length] = torch.tensor(trajectory.logprobs, dtype=dtype)
    rewards = torch.tensor([t.reward for t in trajectories], dtype=dtype)
    batch = RolloutBatch(
        token_ids=token_ids,
        attention_mask=attention_mask,
        response_mask=response_mask,
        rollout_logprobs=logprobs,
        teacher_logprobs=torch.zeros_like(logprobs),
        aligned_mask=response_mask.clone(),
        distill_mask=response_mask.clone(),
        distill_weights=torch.ones_like(rewards),
        outcome_advantages=torch.zeros_like(rewards),
        rewards=rewards,
        group_ids=torch.tensor(group_ids),
        teacher_ids=torch.tensor(teacher_ids),
        is_truncated=torch.tensor([t.is_truncated for t in trajectories]),
        has_format_error=torch.tensor([bool(t.format_errors) for t in trajectories]),
        num_active_tokens=response_mask.sum().to(torch.float64).to(device),
        num_trajectories=torch.tensor(len(trajectories), dtype=torch.float64, device=device),
        temperature=temperature,
        teacher_names=tuple(teacher_names),
        trajectories=tuple(trajectories),
    )
    return batch.map(lambda tensor: tensor.to(device))


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


def cut(rollouts: RolloutBatch, num_updates: int, num_micro_batches: int) -> list[RolloutBatch]:
    """Cut a rollout batch into `num_updates` × `num_micro_batches` balanced micro-batches, in order of use.

    With several updates each micro-batch's denominators cover its own update on this rank only;
    the caller sums them over ranks. The rollout batch's metrics travel with the first micro-batch.
    """
    num_parts = num_updates * num_micro_batches
    if num_parts == 1:
        return [rollouts]
    lengths: list[int] = rollouts.attention_mask.sum(dim=1).tolist()
    parts = [
        rollouts.select(torch.tensor(p, device=rollouts.token_ids.device)) for p in balanced_parts(lengths, num_parts)
    ]
    for part in parts[1:]:
        part.metrics = {}
    for update in range(num_updates):
        chosen = parts[update * num_micro_batches : (update + 1) * num_micro_batches]
        tokens = _total([part.response_mask.sum() for part in chosen])
        rows = _total([part.num_trajectories.new_tensor(len(part)) for part in chosen])
        for part in chosen:
            part.num_active_tokens, part.num_trajectories = tokens, rows
    return parts


def _total(counts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(counts)).sum().to(torch.float64)
