"""The functions of flash attention 3 in plain operations: a CPU runs them, and in float64.

Under the name that this file has, transformers imports them for `flash_attention_3`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    """Attend inside each row of `[batch, time, heads, width]`; the last query stands at the last key."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    num_queries, num_keys = q.shape[2], k.shape[2]
    back = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)
    is_read = torch.ones_like(back, dtype=torch.bool)
    if causal:
        is_read &= back >= 0
    if window_size[0] >= 0:
        is_read &= back <= window_size[0]
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    return (scores.masked_fill(~is_read, -torch.inf).softmax(dim=-1) @ v).transpose(1, 2)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    """Attend inside each stretch of `[tokens, heads, width]`."""
    borders = [pairwise(ends.tolist()) for ends in (cu_seqlens_q, cu_seqlens_k)]
    return torch.cat(
        [
            flash_attn_func(q[None, a:b], k[None, c:d], v[None, c:d], softmax_scale, causal, window_size, softcap)[0]
            for (a, b), (c, d) in zip(*borders, strict=True)
        ]
    )


flash_attn_with_kvcache = None
