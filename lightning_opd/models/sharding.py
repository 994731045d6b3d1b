"""Weights sharded over processes (FSDP2), and gathered once for a whole generation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shard a model's layers, then the model itself, over the data-parallel ranks (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    layers = set(model._no_split_modules or ())  # transformers' own list of layer classes
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def shard_whole(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a small module as one group over the data-parallel ranks (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    fully_shard(module, mesh=mesh)


@contextlib.contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather a sharded model's weights once for everything inside; does nothing for others."""
    from torch.distributed.fsdp import FSDPModule

    groups = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for group in groups:
        group.set_reshard_after_forward(False, recurse=False)
    for group in groups:
        group.unshard()
    try:
        yield
    finally:
        for index, group in enumerate(groups):
            group.reshard()
            group.set_reshard_after_forward(index != 0, recurse=False)
