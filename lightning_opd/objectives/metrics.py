"""Sums and counts that add up over micro-batches and ranks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from lightning_opd.types import RolloutBatch


def mean_over(values: Shaped[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> tuple[Tensor, Tensor]:
    """Return (sum, count) of the values where the mask holds, detached and in float64."""
    values = values.detach().to(torch.float64)
    return torch.where(mask, values, 0.0).sum(), mask.sum().to(torch.float64)


def per_teacher(
    name: str, values: Shaped[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], batch: RolloutBatch
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return (sum, count) over all rows as `name`, and over each teacher's rows as `name/<teacher>`."""
    metrics = {name: mean_over(values, mask)}
    for index, teacher in enumerate(batch.teacher_names):
        metrics[f"{name}/{teacher}"] = mean_over(values, mask & (batch.teacher_ids == index)[:, None])
    return metrics
