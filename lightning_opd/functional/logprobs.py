"""Token log-probs and entropies, and the only shift by one between states and the tokens they predict."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MAX_CHUNK_ELEMENTS = 2**24
"""Logits that may exist at once; 64 MiB in float32."""

CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**30}
"""Logits in bytes that one chunk may hold on each kind of device."""

MAX_LOG_RATIO = 20.0
"""Largest difference in nats of two log-probs whose ratio is formed."""


def promote(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return `x` in at least float32; float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def positions_per_chunk(vocab_size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> int:
    """Return how many positions' logits one chunk may hold, at least 1.

    Args:
        vocab_size: Logits per position.
        device: Where they are computed.
        dtype: Of the states; the logits are counted in at least float32.
    """
    num_bytes = torch.promote_types(dtype, torch.float32).itemsize * max(1, vocab_size)
    return max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // num_bytes)


def bounded_log_ratio(
    logprobs: Float[Tensor, "*shape"], other_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Return logprobs − other_logprobs in nats, clamped to [−20, 20] so that its exponential is finite.

    Differentiable in `logprobs` inside these bounds; −inf on either or both sides is no NaN.
    """
    floor = torch.finfo(torch.float16).min
    difference = promote(logprobs).clamp(min=floor) - promote(other_logprobs).detach().clamp(min=floor)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def log_softmax(logits: Float[Tensor, "*shape vocab"], temperature: float = 1.0) -> Float[Tensor, "*shape vocab"]:
    """Return the log-softmax of logits / temperature over the last axis, in at least float32."""
    return torch.log_softmax(promote(logits) / temperature, dim=-1)


def shift_right(states: Float[Tensor, "batch time hidden"]) -> Float[Tensor, "batch time hidden"]:
    """Move every state to the token it predicts: `out[b, t] = states[b, t - 1]`, zeros at position 0.

    Example:
        >>> shift_right(torch.tensor([[[1.0], [2.0], [3.0]]])).squeeze(-1)
        tensor([[0., 1., 2.]])
    """
    return torch.nn.functional.pad(states, (0, 0, 1, 0))[:, :-1]


def token_logprobs(
    logits: Float[Tensor, "batch time vocab"], token_ids: Int[Tensor, "batch time"], temperature: float = 1.0
) -> Float[Tensor, "batch time"]:
    """Return the log-prob of every token in nats, `out[b, t]` from `logits[b, t - 1]`.

    Args:
        logits: Output of a causal language model for the same `token_ids`.
        token_ids: The tokens to score; position 0 has no prediction and scores 0.0.
        temperature: Divides the logits.

    Example:
        >>> token_logprobs(torch.zeros(1, 2, 4), torch.tensor([[0, 3]]))
        tensor([[ 0.0000, -1.3863]])
    """
    chosen = log_softmax(logits[:, :-1], temperature).gather(-1, token_ids[:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(chosen, (1, 0))


def linear_token_logprobs(
    hidden: Float[Tensor, "batch time hidden"],
    weight: Float[Tensor, "vocab hidden"],
    token_ids: Int[Tensor, "batch time"],
    temperature: float = 1.0,
    bias: Float[Tensor, " vocab"] | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, "batch time"]:
    """Return `token_logprobs(hidden @ weight.T + bias, ...)` without all logits in memory at once.

    Args:
        hidden: Last hidden states of a causal language model for the same `token_ids`.
        weight: Output matrix.
        token_ids: The tokens to score; position 0 scores 0.0.
        temperature: Divides the logits.
        bias: Output bias, or None.
        chunk_size: Positions per chunk; by default as many as keep a chunk's logits under 64 MiB.
    """
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    mask[:, 0] = False

    def logits(states: Tensor) -> Tensor:
        return torch.nn.functional.linear(states, weight, bias)

    chunk_size = chunk_size or max(1, MAX_CHUNK_ELEMENTS // len(weight))
    return linear_token_statistics(shift_right(hidden), logits, token_ids, mask, temperature, chunk_size)[0]


def linear_token_statistics(
    states: Float[Tensor, "batch time hidden"],
    head: Callable[[Tensor], Tensor],
    token_ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    temperature: float = 1.0,
    chunk_size: int | None = None,
    *,
    with_entropies: bool = True,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Return log-probs (with gradient) and entropies (detached) in nats where `mask` is True, 0 elsewhere.

    Args:
        states: `states[b, t]` predicts `token_ids[b, t]` (see `shift_right`).
        head: Maps states to logits.
        token_ids: The tokens to score.
        mask: Positions to score; the others cost nothing.
        temperature: Divides the logits.
        chunk_size: Positions per chunk.
        with_entropies: Whether to compute the entropies, too; else they are 0.
    """

    def statistics(states: Tensor, token_ids: Tensor) -> Tensor:
        if not with_entropies:
            logits = promote(head(states)) / temperature
            chosen = logits.gather(-1, token_ids[:, None]) - torch.logsumexp(logits, -1, keepdim=True)
            return torch.cat([chosen, torch.zeros_like(chosen)], dim=-1)
        logprobs = log_softmax(head(states), temperature)
        detached = logprobs.detach()
        entropy = -torch.where(detached != -torch.inf, detached.exp() * detached, 0.0).sum(-1)
        return torch.stack([logprobs.gather(-1, token_ids[:, None]).squeeze(-1), entropy], dim=-1)

    both = over_positions(statistics, mask, states, token_ids, chunk_size=chunk_size)
    return both[..., 0], both[..., 1].detach()


@torch.no_grad()
def linear_top_k(
    states: Float[Tensor, "batch time hidden"],
    head: Callable[[Tensor], Tensor],
    mask: Bool[Tensor, "batch time"],
    k: int,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> tuple[Int[Tensor, "batch time k"], Float[Tensor, "batch time k"]]:
    """Return the ids and log-probs (nats) of the k likeliest tokens where `mask` is True, likeliest first.

    Elsewhere ids are 0 and log-probs 0. A smaller vocabulary gives fewer than k.

    Args:
        states: `states[b, t]` predicts token t (see `shift_right`).
        head: Maps states to logits.
        mask: Positions to look at; the others cost nothing.
        k: Tokens per position.
        temperature: Divides the logits.
        chunk_size: Positions per chunk.
    """
    rows, columns = mask.nonzero(as_tuple=True)
    chosen = states[rows, columns]
    found = []
    for part in chosen.split(chunk_size or max(1, len(chosen))):
        logprobs = log_softmax(head(part), temperature)
        found.append(logprobs.topk(min(k, logprobs.shape[-1]), dim=-1))
    values, ids = torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
    all_ids, all_values = (x.new_zeros(*mask.shape, x.shape[-1]) for x in (ids, values))
    all_ids[rows, columns], all_values[rows, columns] = ids, values
    return all_ids, all_values


def over_positions(
    function: Callable[..., Tensor],
    mask: Bool[Tensor, "batch time"],
    states: Tensor,
    *others: Tensor,
    chunk_size: int | None = None,
) -> Tensor:
    """Apply a function to the positions that count, chunk by chunk, and put the results back; 0 elsewhere.

    With several chunks each is recomputed in the backward pass, so that only one chunk's logits
    exist at a time. An empty mask gives zeros that stay in the graph of `states`.

    Args:
        function: Maps `[positions, ...]` tensors to one `[positions, ...]` tensor.
        mask: Positions that count.
        states: First `[batch, time, ...]` argument.
        others: Further `[batch, time, ...]` arguments.
        chunk_size: Positions per chunk; by default everything at once.
    """
    rows, columns = mask.nonzero(as_tuple=True)
    if len(rows) == 0:  # one position, multiplied by nothing: keeps every parameter in the graph
        rows = columns = torch.zeros(1, dtype=torch.long, device=mask.device)
    keep = mask[rows, columns]
    arguments = [x[rows, columns] for x in (states, *others)]
    size = chunk_size or len(rows)
    chunks = list(zip(*(x.split(size) for x in arguments), strict=True))
    if len(chunks) == 1:
        values = function(*chunks[0])
    else:
        values = torch.cat([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks])
    keep = keep.reshape(-1, *[1] * (values.ndim - 1))
    out = values.new_zeros(*mask.shape, *values.shape[1:])
    return out.index_put((rows, columns), torch.where(keep, values, 0.0))
