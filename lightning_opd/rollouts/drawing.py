"""How one token is drawn: the distribution that `Sampling` makes of the logits, and the draw itself."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_opd.functional.logprobs import log_softmax
from lightning_opd.rollouts.noise import uniforms
from lightning_opd.types import Sampling


def draw(
    logits: Float[Tensor, "rows vocab"],
    seeds: Int[Tensor, " rows"],
    position: int,
    sampling: Sampling,
    seen: Bool[Tensor, "rows vocab"] | None = None,
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Sample one token per row by inverting the cumulative distribution, and return its log-prob.

    The log-prob (nats) is that of the distribution drawn from, `sampling_logprobs`.
    Greedy (`temperature` 0) takes the likeliest token and reports its log-prob at temperature 1.

    Args:
        logits: Of the model.
        seeds: One per row.
        position: Index of the draw within the row.
        sampling: How to draw.
        seen: True on the tokens of the row's prompt and reply so far; needed for a repetition penalty alone.
    """
    if sampling.temperature == 0:
        logprobs = log_softmax(_penalised(logits, sampling, seen))
        tokens = logprobs.argmax(dim=-1)
    else:
        logprobs = sampling_logprobs(logits, sampling, seen)
        cumulative = logprobs.double().exp().cumsum(dim=-1)
        targets = uniforms(seeds, position) * cumulative[:, -1]
        tokens = torch.searchsorted(cumulative, targets[:, None], right=True).squeeze(-1)
        tokens = tokens.clamp(max=logits.shape[-1] - 1)  # NaN logits draw nothing; their update is skipped later
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


def sampling_logprobs(
    logits: Float[Tensor, "rows vocab"], sampling: Sampling, seen: Bool[Tensor, "rows vocab"] | None = None
) -> Float[Tensor, "rows vocab"]:
    """Return the log-probs (nats) that tokens are drawn with; -inf for those that are never drawn.

    In the order of transformers and vLLM: the penalty, the temperature, the k likeliest, the nucleus of these, and
    what is likely enough beside the likeliest.

    Args:
        logits: Of the model.
        sampling: With a temperature above 0.
        seen: True on the tokens of the row's prompt and reply so far; needed for a repetition penalty alone.
    """
    logprobs = log_softmax(_penalised(logits, sampling, seen), sampling.temperature)
    if sampling.top_k is not None and sampling.top_k < logprobs.shape[-1]:
        logprobs = _only(likeliest(logprobs, sampling.top_k), logprobs)
    if sampling.top_p < 1:
        logprobs = _only(nucleus(logprobs, sampling.top_p), logprobs)
    if sampling.min_p > 0:
        least = logprobs.exp().amax(dim=-1, keepdim=True) * sampling.min_p
        logprobs = _only(logprobs.exp() >= least, logprobs)
    return logprobs


def likeliest(logprobs: Float[Tensor, "rows vocab"], top_k: int) -> Bool[Tensor, "rows vocab"]:
    """Return the k likeliest tokens, and those as likely as the last of them."""
    return logprobs >= logprobs.topk(top_k, dim=-1).values[:, -1:]


def nucleus(logprobs: Float[Tensor, "rows vocab"], top_p: float) -> Bool[Tensor, "rows vocab"]:
    """Return the smallest set of likeliest tokens whose mass reaches `top_p`."""
    ordered, order = logprobs.double().exp().sort(dim=-1, descending=True)
    is_needed = ordered.cumsum(dim=-1) - ordered < top_p
    return torch.zeros_like(is_needed).scatter(-1, order, is_needed)


def _only(kept: Bool[Tensor, "rows vocab"], logprobs: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
    return log_softmax(torch.where(kept, logprobs, -torch.inf))


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
