"""States with the output layer that turns them into logits, one chunk of positions at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_opd.functional.logprobs import positions_per_chunk, promote

BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
"""Logits that elementwise operations visit at once on each kind of device, so that their copies stay in its cache."""


class OutputLayer(Protocol):
    """What the arithmetic must know of an output layer; `types.LinearHead` is one."""

    @property
    def weight(self) -> Tensor | None:
        """Output matrix `[vocab, hidden]`, or None where the states already are logits."""

    @property
    def bias(self) -> Tensor | None:
        """Output bias `[vocab]`, or None."""

    @property
    def vocab_size(self) -> int:
        """Number of real tokens; padded rows of the matrix above it do not count."""

    @property
    def scale(self) -> float:
        """Multiplies the product of states and matrix."""

    @property
    def soft_cap(self) -> float | None:
        """Bounds the logits by soft_cap · tanh(logits / soft_cap), if given."""


@dataclass(frozen=True)
class HeadStates:
    """States `[positions, hidden]`, the head that reads them, and the temperature of their logits.

    Args:
        states: One row per position.
        head: The output layer.
        temperature: Divides the logits.
    """

    states: Float[Tensor, "positions hidden"]
    head: OutputLayer
    temperature: float = 1.0

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix product: the matrix's own, or that of autocast where it is on."""
        own = self.states if self.head.weight is None else self.head.weight
        kind = own.device.type
        if self.head.weight is not None and torch.is_autocast_enabled(kind) and own.dtype != torch.float64:
            return torch.get_autocast_dtype(kind)
        return own.dtype

    def detached(self, dtype: torch.dtype | None = None) -> Projection:
        """Return the same as plain numbers, ready for chunks of logits.

        Args:
            dtype: Of the products; by default `dtype`.
        """
        weight, bias = (
            None if x is None else x.detach().to(dtype or self.dtype) for x in (self.head.weight, self.head.bias)
        )
        return Projection(self.states.detach(), weight, bias, self.head.scale, self.head.soft_cap, self.temperature)


@dataclass(frozen=True)
class Projection:
    """A head without graph, its matrix in the dtype of the products.

    Args:
        states: One row per position.
        weight: Output matrix with all its rows, or None where the states already are logits.
        bias: Output bias, or None.
        scale: Multiplies the product of states and matrix.
        soft_cap: Bounds the logits, if given.
        temperature: Divides the logits.
    """

    states: Float[Tensor, "positions hidden"]
    weight: Float[Tensor, "rows hidden"] | None
    bias: Float[Tensor, " rows"] | None
    scale: float
    soft_cap: float | None
    temperature: float

    def products(self, positions: slice, vocab_size: int, buffer: Float[Tensor, " elements"]) -> Tensor:
        """Return states times matrix, `[positions, vocab]`, in the memory of `buffer`."""
        states = self.states[positions]
        out = buffer[: len(states) * vocab_size].view(len(states), vocab_size)
        if self.weight is None:
            return out.copy_(states[:, :vocab_size])
        states = states.to(self.weight.dtype)  # some models keep float32 states beside bfloat16 weights
        if self.bias is None:
            return torch.mm(states, self.weight[:vocab_size].T, out=out)
        return torch.addmm(self.bias[:vocab_size], states, self.weight[:vocab_size].T, out=out)

    def buffer(self, num_elements: int) -> Float[Tensor, " elements"]:
        """Return memory for so many products."""
        like = self.states if self.weight is None else self.weight
        return torch.empty(num_elements, dtype=like.dtype, device=like.device)

    def finish(self, products: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
        """Return logits in at least float32, divided by the temperature; the products may be overwritten.

        As in the model itself, scale and soft cap act in the dtype of the products.
        """
        if self.scale != 1:
            products.mul_(self.scale)
        if self.soft_cap is not None:
            products.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        logits = promote(products)
        return logits if self.temperature == 1 else logits.div_(self.temperature)

    def slope(self, products: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"] | None:
        """Return the soft cap's derivative at products that `finish` has overwritten, before they change again."""
        if self.soft_cap is None:
            return None
        factor = self.temperature if products.dtype == promote(products).dtype else 1.0
        return (promote(products) * (factor / self.soft_cap)).square_().neg_().add_(1)

    @property
    def factor(self) -> float:
        """Derivative of the logits in the products where there is no soft cap."""
        return self.scale / self.temperature


def chunks(num_positions: int, vocab_size: int, like: Tensor) -> Iterator[slice]:
    """Yield slices of positions, each with no more logits than a chunk may hold."""
    size = positions_per_chunk(vocab_size, like.device, like.dtype)
    for start in range(0, num_positions, size):
        yield slice(start, min(start + size, num_positions))


def blocks(logits: Float[Tensor, "positions vocab"]) -> Iterator[slice]:
    """Yield slices of rows over which elementwise operations should go one after the other."""
    elements = BLOCK_ELEMENTS.get(logits.device.type, BLOCK_ELEMENTS["cpu"])
    size = max(1, elements // max(1, logits.shape[1]))
    for start in range(0, len(logits), size):
        yield slice(start, min(start + size, len(logits)))


def log_softmax_(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
    """Overwrite logits by their log-softmax."""
    if logits.device.type == "cpu":  # one pass, each row read whole before it is written
        return torch.log_softmax(logits, -1, out=logits)
    return logits.sub_(torch.logsumexp(logits, -1, keepdim=True))


def row_dot(x: Float[Tensor, "rows n"], y: Float[Tensor, "rows n"]) -> Float[Tensor, " rows"]:
    """Return the scalar product of each pair of rows; one pair, as of a large vocabulary, without a copy."""
    return torch.dot(x[0], y[0])[None] if len(x) == 1 else (x * y).sum(-1)
