"""The mask of first special tokens, where log-ratios are largest and least informative."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def first_special_token_mask(
    token_ids: Int[Tensor, "batch time"], response_mask: Bool[Tensor, "batch time"], special_ids: Sequence[int]
) -> Bool[Tensor, "batch time"]:
    """Return True where a token keeps its signal: everywhere but at each response's first special token.

    A teacher whose template opens or closes differently (`<think>`, an end of turn) gives that one token
    a log-ratio that outweighs the rest of the response. Later special tokens keep their signal. Do not use it
    where the student must learn a special token, for example to stop: its only stop token is then the first
    special one.

    Args:
        token_ids: Prompt and response.
        response_mask: True where the student generated the token.
        special_ids: Ids of the special tokens.

    Reference:
        Fu et al., Revisiting on-policy distillation: empirical failure modes and simple fixes, arXiv 2603.25562
        (2026), special-token mask.

    Example:
        >>> response = torch.tensor([[False, True, True, True]])
        >>> first_special_token_mask(torch.tensor([[9, 1, 9, 9]]), response, [9])
        tensor([[ True,  True, False,  True]])
    """
    is_special = torch.isin(token_ids, torch.tensor(special_ids, dtype=token_ids.dtype, device=token_ids.device))
    is_special = is_special & response_mask
    return ~(is_special & (is_special.cumsum(-1) == 1))
