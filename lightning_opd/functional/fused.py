"""Values of a head's logits together with their gradient, formed chunk by chunk in one pass over the matrix.

A loss is a weighted sum of one value per position. Where the weights are known before the values, the gradient is
made while a chunk's logits exist: they are computed once and overwritten by the gradient. The weights are a forecast
only: if another gradient comes back than they promised, the chunks are gone through again with it, so that the
result is that of the plain formula whatever the caller does with the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from typing_extensions import override

from lightning_opd.functional.heads import HeadStates, Projection, blocks, chunks, log_softmax_, row_dot
from lightning_opd.functional.logprobs import promote

BlockFunction: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
"""From logits `[rows, vocab]`, further tensors of the same rows, and `gradient=`: values `[rows]` and numbers to log
`[rows, n]`. With `gradient` it overwrites the logits by the derivative of each row's value in them."""


Beside: TypeAlias = Callable[[slice], tuple[Tensor, ...]]
"""From a slice of a part's positions to further `[positions, ...]` arguments of its function."""


WeightsOf: TypeAlias = Callable[[slice, Tensor], Tensor]
"""From a slice of positions and their values to the gradient with which these are expected to come back."""


class Part(NamedTuple):
    """Consecutive positions that share a vocabulary and a function.

    Args:
        num_positions: How many.
        vocab_size: Logits per position.
        begin: Called before the positions are gone through; what it allocates is freed after the last one.
    """

    num_positions: int
    vocab_size: int
    begin: Callable[[], tuple[BlockFunction, Beside]]


class Fused(NamedTuple):
    """One value per position, and what to log beside it.

    Args:
        values: `[positions]`, with a graph.
        metrics: `[positions, n]`, detached.
    """

    values: Float[Tensor, " positions"]
    metrics: Float[Tensor, "positions n"]


def fused(
    student: HeadStates,
    parts: Sequence[Part],
    weights: Float[Tensor, " positions"] | WeightsOf | None = None,
    num_metrics: int = 0,
) -> Fused:
    """Return the values of all parts, which follow one another in the student's positions.

    Args:
        student: States and head to differentiate.
        parts: What to compute of each position's logits.
        weights: The gradient with which each value is expected to come back, up to one common factor; saves a
            product with the matrix. A function where it depends on the value itself, None where it is not known.
        num_metrics: Numbers to log per position.
    """
    head = student.head
    weights = weights if torch.is_grad_enabled() else None
    inputs = (student.states, head.weight, head.bias, weights)
    values, metrics = _Fused.apply(*inputs, student, tuple(parts), num_metrics)  # type: ignore[no-untyped-call]
    return Fused(values, metrics)


def token_statistics(
    student: HeadStates,
    token_ids: Int[Tensor, " positions"],
    weights: Float[Tensor, " positions"] | WeightsOf | None = None,
    *,
    with_entropies: bool = False,
) -> tuple[Float[Tensor, " positions"], Float[Tensor, " positions"] | None]:
    """Return log-probs (nats, with gradient) of tokens, and the entropies of their distributions if asked for.

    Args:
        student: State from which each token is predicted, and the head.
        token_ids: The tokens.
        weights: See `fused`: of a policy-gradient loss −Σ Â log π the factors −Â.
        with_entropies: Whether to compute entropies (nats, detached).
    """

    def function(logits: Tensor, ids: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor]:
        logprobs = log_softmax_(logits)
        chosen = logprobs.gather(-1, ids[:, None])
        entropies = chosen[:, :0]
        if with_entropies:
            probabilities = logprobs.exp()
            logprobs.clamp_(min=torch.finfo(logprobs.dtype).min)  # 0 · −inf is no number
            entropies = -row_dot(probabilities, logprobs)[:, None]
        if gradient:
            slope = torch.neg(probabilities, out=logits) if with_entropies else logits.exp_().neg_()
            slope.scatter_add_(-1, ids[:, None], torch.ones_like(chosen))
        return chosen.squeeze(-1), entropies

    beside = (function, lambda positions: (token_ids[positions],))
    part = Part(len(token_ids), student.head.vocab_size, lambda: beside)
    values, metrics = fused(student, [part], weights, int(with_entropies))
    return values, metrics[:, 0] if with_entropies else None


@dataclass
class _Gradients:
    """Memory for the gradients that are asked for, filled chunk by chunk."""

    weights: Tensor
    weights_of: WeightsOf | None
    states: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    has_weight: bool = False

    def add(self, slopes: Tensor, positions: slice, student: Projection, values: Tensor) -> None:
        """Add those of a chunk: `slopes` are the derivatives of its values in the products."""
        if self.weights_of is not None:
            self.weights[positions] = self.weights_of(positions, values)
        factors = (self.weights[positions].to(promote(slopes).dtype) * student.factor)[:, None]
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


def _space(like: Tensor | None, *, is_asked: bool, is_filled: bool = True) -> Tensor | None:
    if not is_asked or like is None:
        return None
    return (torch.zeros_like if is_filled else torch.empty_like)(like, dtype=promote(like).dtype)


def _go_through(
    student: Projection, parts: Sequence[Part], gradients: _Gradients | None, num_metrics: int
) -> tuple[Tensor, Tensor]:
    """Return values and numbers to log of all positions, and add up the gradients."""
    num = len(student.states)
    like = student.buffer(0)
    values = torch.zeros(num, dtype=promote(like).dtype, device=like.device)
    metrics = values.new_zeros(num, num_metrics)
    pieces = [list(chunks(part.num_positions, part.vocab_size, like)) for part in parts]
    sizes = [(p.stop - p.start) * part.vocab_size for part, own in zip(parts, pieces, strict=True) for p in own]
    buffer = student.buffer(max(sizes, default=0))
    start = 0
    for part, own in zip(parts, pieces, strict=True):
        function, beside = part.begin()
        for piece in own:
            positions = slice(start + piece.start, start + piece.stop)
            products = student.products(positions, part.vocab_size, buffer)
            found = _over_blocks(student, products, function, beside(piece), gradient=gradients is not None)
            for rows, (block_values, block_metrics) in found:
                values[positions][rows], metrics[positions][rows] = block_values, block_metrics
            if gradients is not None:
                gradients.add(products, positions, student, values[positions])
        start += part.num_positions
    if gradients is not None:
        gradients.weights_of = None  # it may hold what holds the values
    return values, metrics


def _over_blocks(
    student: Projection, products: Tensor, function: BlockFunction, beside: tuple[Tensor, ...], *, gradient: bool
) -> Iterator[tuple[slice, tuple[Tensor, Tensor]]]:
    """Yield what the function finds in each block; with `gradient`, the products become slopes."""
    for rows in blocks(products):
        own = products[rows]
        logits = student.finish(own)
        slope = student.slope(own) if gradient else None
        yield rows, function(logits, *(x[rows] for x in beside), gradient=gradient)
        if slope is not None:
            logits.mul_(slope)
        if gradient and logits.data_ptr() != own.data_ptr():
            own.copy_(logits)


class _Fused(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        weights: Tensor | WeightsOf | None,
        student: HeadStates,
        parts: tuple[Part, ...],
        num_metrics: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.student, ctx.dtype, ctx.parts, ctx.num_metrics = student, student.dtype, parts, num_metrics
        ctx.gradients, known = None, weights if isinstance(weights, Tensor) else None
        if weights is not None and any(ctx.needs_input_grad):
            weights_of = None if isinstance(weights, Tensor) else weights
            known = states.new_zeros(len(states), dtype=promote(states).dtype) if known is None else known
            ctx.gradients = _gradients(ctx, known, weights_of, states, weight, bias)
        with torch.autocast(states.device.type, enabled=False):
            values, metrics = _go_through(student.detached(ctx.dtype), parts, ctx.gradients, num_metrics)
        ctx.save_for_backward(states, weight, bias, known)
        ctx.mark_non_differentiable(metrics)
        return values, metrics

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, *found: Tensor) -> tuple[Tensor | None, ...]:
        gradient, (states, weight, bias, weights) = found[0], ctx.saved_tensors
        ready, ctx.gradients = ctx.gradients, None  # a second backward goes through the chunks again
        factor = None if ready is None else _common_factor(gradient, weights)
        if factor is None:
            ready, factor = _gradients(ctx, gradient, None, states, weight, bias), 1.0
            with torch.autocast(states.device.type, enabled=False):
                _go_through(ctx.student.detached(ctx.dtype), ctx.parts, ready, ctx.num_metrics)
        own = zip(ready.scaled(factor), (states, weight, bias), strict=True)
        return (*(g if g is None else g.to(x.dtype) for g, x in own), None, None, None, None)


def _gradients(ctx: FunctionCtx, weights: Tensor, weights_of: WeightsOf | None, *inputs: Tensor | None) -> _Gradients:
    (states, weight, bias), asked = inputs, ctx.needs_input_grad  # type: ignore[attr-defined]
    return _Gradients(
        weights.detach(),
        weights_of,
        _space(states, is_asked=asked[0]),
        _space(weight, is_asked=asked[1], is_filled=False),
        _space(bias, is_asked=asked[2]),
    )


def _common_factor(gradient: Tensor, weights: Tensor) -> float | None:
    """Return c where gradient = c · weights up to rounding, else None."""
    given, expected = gradient.double(), weights.double()
    norm = (expected * expected).sum()
    factor = torch.where(norm > 0, (given * expected).sum() / norm, 0.0)
    allowed = 16 * torch.finfo(gradient.dtype).eps * given.abs()
    agree = ((given - factor * expected).abs() <= allowed).all()
    both = torch.stack([agree.double(), factor]).tolist()  # one wait for the device
    return both[1] if both[0] else None
