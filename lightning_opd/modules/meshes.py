"""The processes that a strategy lets share a model's weights, and the precision in which they gather them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import lightning as L  # Lightning's own convention
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_opd.errors import ConfigError
from lightning_opd.models.distributed import wait_at_most

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def data_mesh(module: L.LightningModule) -> DeviceMesh | None:
    """Return the ranks that share the weights, or None where every rank has all of them.

    Their collectives wait for a slow rank, which may still generate, as long as the strategy's `timeout` says.

    Raises:
        ConfigError: The strategy would split matrices (tensor parallelism), which is not supported.
    """
    mesh = module.device_mesh
    if mesh is None:
        return None
    if mesh["tensor_parallel"].size() > 1:
        msg = (
            f"Expected `tensor_parallel_size: 1`, got {mesh['tensor_parallel'].size()}. Set `data_parallel_size` of "
            "the ModelParallelStrategy to the number of processes (see configs/trainer/fsdp.yaml)."
        )
        raise ConfigError(msg)
    timeout = getattr(module.trainer.strategy, "_timeout", None)  # Lightning's only name for it
    if timeout is not None:
        wait_at_most(mesh["data_parallel"], timeout)
    return mesh["data_parallel"]


def sharding_precision(module: L.LightningModule) -> AbstractContextManager[object]:
    """Enter the precision of the training step where weights are sharded: they are gathered in it."""
    precision = None if data_mesh(module) is None else module.trainer.precision_plugin
    return precision.forward_context() if isinstance(precision, MixedPrecision) else nullcontext()
