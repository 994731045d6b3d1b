"""Weights sharded over processes (FSDP2), and gathered once for a whole generation."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_opd.errors import ConfigError
from lightning_opd.models.quantization import is_quantized

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy
    from transformers import PreTrainedModel


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shard a model's layers, then the model itself, over the data-parallel ranks (FSDP2).

    Inside autocast, as the Trainer's mixed precision enters it, weights are gathered in autocast's precision and
    gradients summed in float32; each rank keeps its part of the weights in their own precision. A model that is
    sharded already stays as it is.

    Raises:
        ConfigError: The model is quantised.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if isinstance(model, FSDPModule):
        return
    if is_quantized(model):
        msg = f"`{model.name_or_path}` in fewer bits cannot be sharded. Leave out `quantization`, or use DDP."
        raise ConfigError(msg)
    policy = precision_policy(model, mesh.device_type)
    layers = set(model._no_split_modules or ())  # transformers' own list of layer classes
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def precision_policy(model: nn.Module, device_type: str) -> MixedPrecisionPolicy:
    """Return in which precision FSDP2 gathers weights and sums gradients here: autocast's, or the weights' own.

    Autocast alone would gather float32 and keep a second copy of every weight until its context ends. Weights of
    several precisions (an adapter in float32 on a bfloat16 base) are gathered in that of most of them, since FSDP2
    gathers only one; each is trained in its own.

    Args:
        model: What is sharded.
        device_type: Of the devices that the weights lie on, for example cuda.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    sizes: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        sizes[parameter.dtype] += parameter.numel()
    if torch.is_autocast_enabled(device_type):
        gathered = torch.get_autocast_dtype(device_type)
    elif len(sizes) > 1:
        gathered = sizes.most_common(1)[0][0]
    else:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32)


def shard_whole(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a small module as one group over the data-parallel ranks (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    fully_shard(module, mesh=mesh)


@contextlib.contextmanager
def root_unsharded(model: nn.Module) -> Iterator[None]:
    """Gather what lies outside a sharded model's layers, its head among it; layers gather themselves in a forward."""
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


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


def whole_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """Return the whole state dict of a sharded model on the first rank (nothing on the others), None of any other.

    All ranks call it together.
    """
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    gathered = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: value for name, value in gathered.items() if isinstance(value, Tensor)}
