"""Weights in the order in which a processor multiplies few rows fastest, for as long as tokens are generated."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Product: TypeAlias = Callable[[Tensor], Tensor]

BREAK_EVEN_STEPS = 16
"""Decode steps from which on the copy is worth its time: it takes as long as about ten save."""

MIN_WEIGHTS = 2**17
"""Weights of the smallest matrix that is worth a copy: oneDNN compiles a kernel for each number of rows, in .5 ms."""


@contextlib.contextmanager
def prepacked(model: nn.Module, num_steps: int) -> Iterator[None]:
    """Let the linear layers on an x86 processor multiply by a copy of their weights in oneDNN's own order.

    A plain product orders the matrix anew for every token. The copies take as much memory as the weights and are gone
    at the end; the products equal the plain ones up to rounding. Only large float32 layers without autocast
    are changed, and nothing where oneDNN is not there or few tokens are generated.

    Args:
        model: Not trained inside; its weights stay as they are.
        num_steps: How many times it will be called, about.
    """
    layers: list[nn.Linear] = []
    if can_prepack(num_steps) and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
        layers = [layer for layer in model.modules() if _is_plain(layer)]
    try:
        for layer in layers:
            vars(layer)["forward"] = _product(layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it multiplies by a whole, large float32 matrix on the processor, and nobody has changed how."""
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        return False
    weight = layer.weight
    if weight.numel() < MIN_WEIGHTS:
        return False
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and not isinstance(weight, DTensor)


def can_prepack(num_steps: int) -> bool:
    """Return whether this processor has what it takes, and whether so many decode steps are worth the copy."""
    if num_steps < BREAK_EVEN_STEPS:
        return False
    is_x86 = platform.machine().lower() in {"x86_64", "amd64"}
    names = ("_reorder_linear_weight", "_linear_pointwise")  # torch's compiler calls them; they have no public name
    has_both = all(hasattr(torch.ops.mkldnn, name) for name in names)
    return is_x86 and has_both and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def _product(layer: nn.Linear) -> Product:
    """Return the layer's forward with a copy of its weight."""
    weight, bias = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach()), layer.bias

    def forward(states: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # it cannot look into oneDNN's order, and makes its own
            return nn.functional.linear(states, layer.weight, bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], None)
        return product

    return forward
