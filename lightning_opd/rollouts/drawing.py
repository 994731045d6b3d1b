"""How one token is drawn: the distribution that `Sampling` makes of the logits, and the draw itself."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_opd.functional.logprobs import promote
from lightning_opd.rollouts.noise import uniforms
from lightning_opd.types import Sampling

BLOCK = 256
"""Neighbouring tokens whose weights are added up first; the draw looks into one such block only."""

CHUNK_ELEMENTS = 2**20
"""Weights that exist at once on a CPU: 4 MiB in float32. Fewer take more calls, and more save little."""

NUM_SORTED = (256, 4_096)
"""Likeliest tokens that a nucleus is looked for in, one size after the other, before all are sorted."""


def draw(
    logits: Float[Tensor, "rows vocab"],
    seeds: Int[Tensor, " rows"],
    position: int | Int[Tensor, " rows"],
    sampling: Sampling,
    seen: Bool[Tensor, "rows vocab"] | None = None,
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Sample one token per row by inverting the cumulative distribution, and return its log-prob.

    The log-prob (nats) is that of the distribution drawn from, `sampling_weights` over their sum.
    Greedy (`temperature` 0) takes the likeliest token and reports its log-prob at temperature 1.

    Weights are added up in blocks of 256 in the precision of the logits (float32 at least), the blocks and the weights
    inside the one that is hit in float64. A row's draw does not depend on the other rows, bit for bit on a CPU.

    Args:
        logits: Of the model.
        seeds: One per row.
        position: Index of the draw within the row, one for all rows or one per row.
        sampling: How to draw.
        seen: True on the tokens of the row's prompt and reply so far; needed for a repetition penalty alone.
    """
    noise = uniforms(seeds, position)
    size = len(logits) if logits.device.type != "cpu" else max(1, CHUNK_ELEMENTS // logits.shape[-1])
    parts = []
    for start in range(0, max(1, len(logits)), max(1, size)):
        rows = slice(start, start + size)
        parts.append(_draw(logits[rows], noise[rows], sampling, None if seen is None else seen[rows]))
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def _draw(logits: Tensor, noise: Tensor, sampling: Sampling, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    weights = sampling_weights(logits, sampling, seen)
    cumulative = _block_sums(weights).cumsum(dim=-1)
    total = cumulative[:, -1:]
    tokens = _hit(weights, cumulative, noise[:, None]) if sampling.temperature > 0 else weights.argmax(-1, keepdim=True)
    logprobs = (weights.gather(-1, tokens) / total).log().to(weights.dtype)
    return tokens.squeeze(-1), logprobs.squeeze(-1)


def _hit(
    weights: Float[Tensor, "rows vocab"], cumulative: Float[Tensor, "rows blocks"], noise: Float[Tensor, "rows 1"]
) -> Int[Tensor, "rows 1"]:
    """Return the token that the fraction `noise` of all weight falls on; the last one where weights are NaN."""
    target = noise * cumulative[:, -1:]
    blocks = torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.shape[-1] - 1)
    before = torch.nn.functional.pad(cumulative, (1, 0)).gather(-1, blocks)
    fraction = (target - before) / (cumulative.gather(-1, blocks) - before)
    columns = blocks * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(-1, columns.clamp(max=weights.shape[-1] - 1)).double()
    inside = torch.where(columns < weights.shape[-1], inside, 0.0).cumsum(dim=-1)
    whole = inside[:, -1:]
    # strictly below the whole, whatever the rounding: a token without weight is never hit
    target = torch.minimum(fraction * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    places = torch.searchsorted(inside, target, right=True)
    return (blocks * BLOCK + places).clamp(max=weights.shape[-1] - 1)


def sampling_weights(
    logits: Float[Tensor, "rows vocab"], sampling: Sampling, seen: Bool[Tensor, "rows vocab"] | None = None
) -> Float[Tensor, "rows vocab"]:
    """Return weights that tokens are drawn in proportion to, in at least float32; 0 for those that are never drawn.

    In the order of transformers and vLLM: the penalty, the temperature, the k likeliest, the nucleus of these, and
    what is likely enough beside the likeliest. Without the last three the weights are probabilities.

    Args:
        logits: Of the model.
        sampling: How to draw; temperature 0 gives the penalised probabilities at temperature 1.
        seen: True on the tokens of the row's prompt and reply so far; needed for a repetition penalty alone.
    """
    logits = promote(_penalised(logits, sampling, seen))
    if sampling.temperature == 0:
        return torch.softmax(logits, dim=-1)
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    weights = torch.softmax(logits, dim=-1)
    if sampling.top_k is not None and sampling.top_k < weights.shape[-1]:
        weights = torch.where(likeliest(logits, sampling.top_k), weights, 0.0)
    if sampling.top_p < 1:
        weights = torch.where(nucleus(weights, sampling.top_p), weights, 0.0)
    if sampling.min_p > 0:
        weights = torch.where(weights >= weights.amax(dim=-1, keepdim=True) * sampling.min_p, weights, 0.0)
    return weights


def likeliest(logits: Float[Tensor, "rows vocab"], top_k: int) -> Bool[Tensor, "rows vocab"]:
    """Return the k likeliest tokens, and those as likely as the last of them."""
    return logits >= logits.topk(top_k, dim=-1).values[:, -1:]


def nucleus(weights: Float[Tensor, "rows vocab"], top_p: float) -> Bool[Tensor, "rows vocab"]:
    """Return the smallest set of likeliest tokens whose weight reaches `top_p` of the whole.

    Of equally likely tokens at its border, those with the smallest ids belong to it.
    """
    needed = top_p * _block_sums(weights).sum(dim=-1, keepdim=True)
    vocab_size = weights.shape[-1]
    for size in (*(size for size in NUM_SORTED if size < vocab_size), vocab_size):
        whole = size == vocab_size
        ordered = (weights.sort(dim=-1, descending=True) if whole else weights.topk(size, dim=-1)).values.double()
        cumulative = ordered.cumsum(dim=-1)
        if whole or bool((cumulative[:, -1:] >= needed).all()):
            break
    count = (cumulative - ordered < needed).sum(dim=-1, keepdim=True)
    border = ordered.gather(-1, (count - 1).clamp(min=0)).to(weights.dtype)
    kept = weights >= border
    if bool((kept.sum(dim=-1, keepdim=True) > count).any()):
        is_border, above = weights == border, weights > border
        kept = above | (is_border & (is_border.cumsum(dim=-1) <= count - above.sum(dim=-1, keepdim=True)))
    return kept


def _block_sums(weights: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows blocks"]:
    """Return the weight of every `BLOCK` neighbouring tokens and of the rest, in float64."""
    num = weights.shape[-1] // BLOCK
    blocks = weights[:, : num * BLOCK].unflatten(-1, (num, BLOCK)).sum(dim=-1)
    rest = weights[:, num * BLOCK :].sum(dim=-1, keepdim=True)
    return torch.cat([blocks, rest], dim=-1).double()


def _penalised(
    logits: Float[Tensor, "rows vocab"], sampling: Sampling, seen: Bool[Tensor, "rows vocab"] | None
) -> Float[Tensor, "rows vocab"]:
    """Return the logits, those of seen tokens made smaller.

    Reference:
        Keskar et al., CTRL (2019), §4.1; negative logits are multiplied, as transformers and vLLM do.
    """
    penalty = sampling.repetition_penalty
    if penalty == 1 or seen is None:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
