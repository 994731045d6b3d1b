"""How large a model is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model, and their memory in this process.

    Args:
        all: Parameters; those that are shared or sharded count once.
        trainable: Those that are trained.
        bytes: Memory of this process's part of them.
        trainable_bytes: Of this process's part of those that are trained.
    """

    all: int
    trainable: int
    bytes: int
    trainable_bytes: int


def num_weights(model: nn.Module) -> int:
    """Return how many weights a model has, loaded or not; those that are tied or sharded count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Count a model's parameters.

    Example:
        >>> parameter_counts(nn.Linear(2, 3))
        ParameterCounts(all=9, trainable=9, bytes=36, trainable_bytes=36)
    """
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    sizes = [
        sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in chosen) for chosen in (parameters, trained)
    ]
    return ParameterCounts(num_weights(model), sum(p.numel() for p in trained), *sizes)
