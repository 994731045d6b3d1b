"""The one home of collectives: sums, flags, maxima and objects over the ranks that each have data of their own.

Each takes the group of these ranks, as a strategy's mesh has it under `data_parallel`. By default it is all ranks: what
would split one rank's data over several (tensor parallelism) is refused before anything is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from datetime import timedelta

    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")


def num_ranks(group: ProcessGroup | None = None) -> int:
    """Return the number of processes that train together.

    Args:
        group: The data-parallel ranks; None for all.
    """
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size(group) if is_distributed else 1


def sum_over_ranks(values: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Return the element-wise sum over all ranks; the given tensor keeps its values.

    Args:
        values: Of this rank.
        group: The data-parallel ranks; None for all.
    """
    if num_ranks(group) == 1:
        return values
    total = values.clone()
    torch.distributed.all_reduce(total, group=group)
    return total


def gather_objects(value: T, group: ProcessGroup | None = None) -> list[T]:
    """Return the value of every rank, in their order, on every rank.

    Args:
        value: Of this rank.
        group: The data-parallel ranks; None for all.
    """
    if num_ranks(group) == 1:
        return [value]
    gathered: list[T | None] = [None] * num_ranks(group)
    torch.distributed.all_gather_object(gathered, value, group=group)
    return cast("list[T]", gathered)


def any_rank(flag: bool, group: ProcessGroup | None = None) -> bool:
    """Return whether a flag holds on any process: what all must do if one of them has to.

    Args:
        flag: Of this rank.
        group: The data-parallel ranks; None for all.
    """
    return any(gather_objects(flag, group))


def max_over(mesh: DeviceMesh, value: int) -> int:
    """Return the largest value among the ranks of a mesh."""
    most = torch.tensor(value, device=mesh.device_type)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=mesh.get_group())
    return int(most)


def wait_at_most(mesh: DeviceMesh, timeout: timedelta) -> None:
    """Let the collectives of a mesh wait for a slow rank as long as those of all ranks.

    torch gives the groups of a mesh with several axes its own default (10 minutes on NCCL), whatever the strategy says.

    Args:
        mesh: With one axis.
        timeout: The strategy's.
    """
    torch.distributed.distributed_c10d._set_pg_timeout(timeout, mesh.get_group())  # torch has no public name for it
