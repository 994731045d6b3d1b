"""Values of a head's logits together with their gradient, formed chunk by chunk in one pass over the matrix.

A loss is a weighted sum of a few values per position. Where the weights are known before the values, the gradient is
made while a chunk's logits exist: they are computed once and overwritten by the gradient. The weights are a forecast
only: if another gradient comes back than they promised, the chunks are gone through again with it, so that the
result is that of the plain formula whatever the caller does with the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from typing_extensions import override

from lightning_opd.functional.compiled import compiled
from lightning_opd.functional.fused_gradients import Gradients, WeightsOf, common_factor, space
from lightning_opd.functional.heads import HeadStates, Projection, blocks, chunks, log_softmax_, row_dot
from lightning_opd.functional.logprobs import promote

BlockFunction: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
"""From logits `[rows, vocab]`, further tensors of the same rows, and `gradient=`: values `[rows]` and numbers to log
`[rows, n]`. With `gradient` it overwrites the logits by the derivative of each row's value in them."""


Beside: TypeAlias = Callable[[slice], tuple[Tensor, ...]]
"""From a slice of a part's positions to further `[positions, ...]` arguments of its function."""


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


class Tokens(NamedTuple):
    """Tokens whose log-probs are formed beside a value, from the same logits.

    Args:
        ids: One per position.
        weights: As of `fused`, for the log-probs.
    """

    ids: Int[Tensor, " positions"]
    weights: Float[Tensor, " positions"] | WeightsOf | None = None


class Fused(NamedTuple):
    """A value per position, and what was found beside it.

    Args:
        values: `[positions]`, with a graph.
        metrics: `[positions, n]`, detached.
        logprobs: Those of the tokens in nats, with a graph; None where none were given, or where a part's vocabulary
            is not the student's whole one.
    """

    values: Float[Tensor, " positions"]
    metrics: Float[Tensor, "positions n"]
    logprobs: Float[Tensor, " positions"] | None = None


def fused(
    student: HeadStates,
    parts: Sequence[Part],
    weights: Float[Tensor, " positions"] | WeightsOf | None = None,
    num_metrics: int = 0,
    tokens: Tokens | None = None,
) -> Fused:
    """Return the values of all parts, which follow one another in the student's positions.

    Args:
        student: States and head to differentiate.
        parts: What to compute of each position's logits.
        weights: The gradient with which each value is expected to come back, up to one common factor; saves a
            product with the matrix. A function where it depends on the value itself, None where it is not known.
        num_metrics: Numbers to log per position.
        tokens: Whose log-probs to form in the same pass.
    """
    head = student.head
    if any(part.vocab_size != head.vocab_size for part in parts):
        tokens = None
    more = () if tokens is None else (_token_logprobs(tokens.ids),)
    forecasts = (weights,) if tokens is None else (weights, tokens.weights)
    known = forecasts if torch.is_grad_enabled() and all(x is not None for x in forecasts) else None
    inputs = (student.states, head.weight, head.bias, student, tuple(parts), more, known, num_metrics)
    values, metrics = _Fused.apply(*inputs)  # type: ignore[no-untyped-call]
    return Fused(values[:, 0], metrics, None if tokens is None else values[:, 1])


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
    own = _token_logprobs(token_ids, with_entropies=with_entropies)
    part = Part(len(token_ids), student.head.vocab_size, lambda: own)
    found = fused(student, [part], weights, int(with_entropies))
    return found.values, found.metrics[:, 0] if with_entropies else None


def _token_logprobs(token_ids: Tensor, *, with_entropies: bool = False) -> tuple[BlockFunction, Beside]:
    """Return what makes the tokens' log-probs, and their entropies to log if asked for, of logits."""
    return partial(token_values, with_entropies=with_entropies), lambda positions: (token_ids[positions],)


@compiled
def token_values(logits: Tensor, ids: Tensor, *, gradient: bool, with_entropies: bool) -> tuple[Tensor, Tensor]:
    """Return log-probs `[rows]` and entropies `[rows, 1]`, or none of these; a `BlockFunction`."""
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


def _go_through(
    student: Projection,
    parts: Sequence[Part],
    more: Sequence[tuple[BlockFunction, Beside]],
    gradients: Gradients | None,
    num_metrics: int,
) -> tuple[Tensor, Tensor]:
    """Return values and numbers to log of all positions, and add up the gradients.

    Args:
        student: Whose positions are gone through.
        parts: The first value of each position, and what to log.
        more: Further values, of all parts' positions.
        gradients: To fill, or None.
        num_metrics: Numbers to log per position.
    """
    num = len(student.states)
    like = student.buffer(0)
    values = torch.zeros(num, 1 + len(more), dtype=promote(like).dtype, device=like.device)
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
            functions = [(function, beside(piece)), *((other, its(positions)) for other, its in more)]
            for rows, found in _over_blocks(student, products, functions, positions, gradients):
                values[rows], metrics[rows] = found
            if gradients is not None:
                if not more:  # else each block was weighed on its own
                    gradients.weigh(positions, values[positions])
                gradients.add(products, positions, student)
        start += part.num_positions
    if gradients is not None:
        gradients.weights_of = ()  # it may hold what holds the values
    return values, metrics


def _over_blocks(
    student: Projection,
    products: Tensor,
    functions: Sequence[tuple[BlockFunction, tuple[Tensor, ...]]],
    positions: slice,
    gradients: Gradients | None,
) -> Iterator[tuple[slice, tuple[Tensor, Tensor]]]:
    """Yield what the functions find in each block's positions; with `gradients`, the products become slopes."""
    has_gradient = gradients is not None
    for rows in blocks(products):
        own, where = products[rows], slice(positions.start + rows.start, positions.start + rows.stop)
        logits = student.finish(own)
        slope = student.slope(own) if has_gradient else None
        slopes = [logits, *(logits.clone() for _ in functions[1:])]
        found = [
            function(x, *(each[rows] for each in beside), gradient=has_gradient)
            for x, (function, beside) in zip(slopes, functions, strict=True)
        ]
        values = torch.stack([own_values for own_values, _ in found], -1)
        if gradients is not None and len(found) > 1:
            gradients.weigh(where, values)
            gradients.mix(slopes, where)
        yield where, (values, found[0][1])
        if slope is not None:
            logits.mul_(slope)
        if has_gradient and logits.data_ptr() != own.data_ptr():
            own.copy_(logits)


class _Fused(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        student: HeadStates,
        parts: tuple[Part, ...],
        more: Sequence[tuple[BlockFunction, Beside]],
        weights: Sequence[Tensor | WeightsOf] | None,
        num_metrics: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.student, ctx.dtype, ctx.parts, ctx.more, ctx.num_metrics = student, student.dtype, parts, more, num_metrics
        ctx.gradients, known = None, None
        if weights is not None and any(ctx.needs_input_grad):
            unknown = states.new_zeros(len(states), dtype=promote(states).dtype)
            known = torch.stack([x.detach() if isinstance(x, Tensor) else unknown for x in weights], -1)
            weights_of = [None if isinstance(x, Tensor) else x for x in weights]
            ctx.gradients = _gradients(ctx, known, weights_of, states, weight, bias)
        with torch.autocast(states.device.type, enabled=False):
            values, metrics = _go_through(student.detached(ctx.dtype), parts, more, ctx.gradients, num_metrics)
        ctx.save_for_backward(states, weight, bias, known)
        ctx.mark_non_differentiable(metrics)
        return values, metrics

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, *found: Tensor) -> tuple[Tensor | None, ...]:
        gradient, (states, weight, bias, weights) = found[0], ctx.saved_tensors
        ready, ctx.gradients = ctx.gradients, None  # a second backward goes through the chunks again
        factor = None if ready is None else common_factor(gradient, weights)
        if factor is None:
            ready, factor = _gradients(ctx, gradient, (), states, weight, bias), 1.0
            with torch.autocast(states.device.type, enabled=False):
                _go_through(ctx.student.detached(ctx.dtype), ctx.parts, ctx.more, ready, ctx.num_metrics)
        own = zip(ready.scaled(factor), (states, weight, bias), strict=True)
        return (*(g if g is None else g.to(x.dtype) for g, x in own), None, None, None, None, None)


def _gradients(
    ctx: FunctionCtx, weights: Tensor, weights_of: Sequence[WeightsOf | None], *inputs: Tensor | None
) -> Gradients:
    (states, weight, bias), asked = inputs, ctx.needs_input_grad  # type: ignore[attr-defined]
    return Gradients(
        weights.detach(),
        weights_of,
        space(states, is_asked=asked[0]),
        space(weight, is_asked=asked[1], is_filled=False),
        space(bias, is_asked=asked[2]),
    )
