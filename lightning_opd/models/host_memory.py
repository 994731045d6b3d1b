"""Frozen weights that wait in the machine's memory while others need the device."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


class HostWeights:
    """A frozen model whose weights come to the device and leave it again; what a device has is a copy.

    Args:
        model: On the device where it computes, sharded or not.

    Attributes:
        is_on_device: Whether the weights are there.
        num_moves: How often they came.
    """

    def __init__(self, model: nn.Module) -> None:
        """Begin with the model on the device."""
        self._model, self._device = model, next(model.parameters()).device
        self._host: list[tuple[Tensor, Tensor]] | None = None
        self.is_on_device = True
        self.num_moves = 0

    def leave(self) -> None:
        """Free the device's memory."""
        if not self.is_on_device:
            return
        if isinstance(self._model, FSDPModule):
            self._model.to(torch.device("cpu"))
        else:
            for tensor, host in self._in_host():
                tensor.data = host
        self.is_on_device = False

    def enter(self) -> None:
        """Bring the weights to the device."""
        if self.is_on_device:
            return
        if isinstance(self._model, FSDPModule):
            self._model.to(self._device)
        else:
            for tensor, host in self._in_host():
                tensor.data = host.to(self._device, non_blocking=True)
        self.is_on_device = True
        self.num_moves += 1

    def _in_host(self) -> list[tuple[Tensor, Tensor]]:
        """Return each tensor with its copy in the machine's memory: made once, in pages that a GPU reads directly."""
        if self._host is None:
            tensors = itertools.chain(self._model.parameters(), self._model.buffers())
            has_pinned = self._device.type == "cuda"
            self._host = [
                (tensor, host.pin_memory() if has_pinned else host)
                for tensor in tensors
                for host in [tensor.detach().cpu()]
            ]
        return self._host
