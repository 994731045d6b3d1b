"""The one home of collectives: sums, flags, maxima and objects over all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")


def num_ranks() -> int:
    """Return the number of processes that train together."""
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_distributed else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the element-wise sum over all ranks; the given tensor keeps its values."""
    if num_ranks() == 1:
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total


def gather_objects(value: T) -> list[T]:
    """Return the value of every rank, in their order, on every rank."""
    if num_ranks() == 1:
        return [value]
    gathered: list[T | None] = [None] * num_ranks()
    torch.distributed.all_gather_object(gathered, value)
    return cast("list[T]", gathered)


def any_rank(flag: bool) -> bool:
    """Return whether a flag holds on any process: what all must do if one of them has to."""
    return any(gather_objects(flag))


def max_over(mesh: DeviceMesh, value: int) -> int:
    """Return the largest value among the ranks of a mesh."""
    most = torch.tensor(value, device=mesh.device_type)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=mesh.get_group())
    return int(most)
