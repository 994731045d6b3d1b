"""Gradients of weighted values of logits in states, matrix and bias, added up chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_opd.functional.heads import Projection
from lightning_opd.functional.logprobs import promote

WeightsOf: TypeAlias = Callable[[slice, Tensor], Tensor]
"""From a slice of positions and their values to the gradient with which these are expected to come back."""


@dataclass
class Gradients:
    """Memory for the gradients that are asked for, filled chunk by chunk; `weights` are `[positions, values]`."""

    weights: Tensor
    weights_of: Sequence[WeightsOf | None]
    states: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    has_weight: bool = False

    def weigh(self, positions: slice, values: Tensor) -> None:
        """Set the weights that depend on the values."""
        for i, weights_of in enumerate(self.weights_of):
            if weights_of is not None:
                self.weights[positions, i] = weights_of(positions, values[:, i]).to(self.weights.dtype)

    def factors(self, positions: slice) -> Tensor:
        """Return what each row of the slopes is multiplied by: the weight, or the largest of several."""
        own = self.weights[positions]
        return own if own.shape[1] == 1 else own.abs().amax(1, keepdim=True)

    def mix(self, slopes: Sequence[Tensor], positions: slice) -> None:
        """Overwrite the first slopes by the weighted sum of all over the factors, so that it keeps their size."""
        factors = self.factors(positions)
        shares = torch.where(factors > 0, self.weights[positions] / factors, 0.0).to(slopes[0].dtype)
        slopes[0].mul_(shares[:, :1])
        for i, other in enumerate(slopes[1:], 1):
            slopes[0].addcmul_(other, shares[:, i : i + 1])

    def add(self, slopes: Tensor, positions: slice, student: Projection) -> None:
        """Add those of a chunk: `slopes` times `factors` are the derivatives of its weighted values in the products."""
        factors = self.factors(positions).to(promote(slopes).dtype) * student.factor
        vocab_size = slopes.shape[1]
        if student.weight is None:
            assert self.states is not None
            self.states[positions, :vocab_size] = slopes * factors
            return
        if self.states is not None:
            self.states[positions] = torch.mm(slopes, student.weight[:vocab_size]) * factors
        if self.weight is not None:
            weighted = (student.states[positions].to(factors.dtype) * factors).to(slopes.dtype)
            own, before = self.weight[:vocab_size], float(self.has_weight)
            if not self.has_weight:  # the memory is as it was found
                self.weight[vocab_size:], self.has_weight = 0.0, True
            if own.dtype == slopes.dtype:
                own.addmm_(slopes.T, weighted, beta=before)
            elif before:
                own.add_(torch.mm(slopes.T, weighted))
            else:
                own.copy_(torch.mm(slopes.T, weighted))
        if self.bias is not None:
            self.bias[:vocab_size] += torch.mv(slopes.T, factors[:, 0].to(slopes.dtype))

    def scaled(self, factor: float) -> list[Tensor | None]:
        """Return them times a factor, in the order of the function's inputs; the memory is used up."""
        if self.weight is not None and not self.has_weight:
            self.weight.zero_()
        found = [self.states, self.weight, self.bias]
        return found if factor == 1 else [None if x is None else x.mul_(factor) for x in found]


def space(like: Tensor | None, *, is_asked: bool, is_filled: bool = True) -> Tensor | None:
    """Return memory for a gradient, or None where none is asked for; zeros, or as it is found."""
    if not is_asked or like is None:
        return None
    return (torch.zeros_like if is_filled else torch.empty_like)(like, dtype=promote(like).dtype)


def common_factor(gradient: Tensor, weights: Tensor) -> float | None:
    """Return c where gradient = c · weights up to rounding, else None."""
    given, expected = gradient.double(), weights.double()
    norm = (expected * expected).sum()
    factor = torch.where(norm > 0, (given * expected).sum() / norm, 0.0)
    allowed = 16 * torch.finfo(gradient.dtype).eps * given.abs()
    agree = ((given - factor * expected).abs() <= allowed).all()
    both = torch.stack([agree.double(), factor]).tolist()  # one wait for the device
    return both[1] if both[0] else None
