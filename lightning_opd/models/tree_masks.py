"""Which models read several continuations in one forward, and the masks with which they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

FULL, SLIDING = "full_attention", "sliding_attention"


def obstacle_to_trees(model: PreTrainedModel) -> str | None:
    """Return why a mask cannot keep the branches of a tree apart in this model, or None.

    A recurrent or a convolutional layer reads its neighbours in the row, whatever the mask says.
    """
    config: PreTrainedConfig = model.config.get_text_config()
    others = sorted(set(getattr(config, "layer_types", None) or ()) - {FULL, SLIDING})
    if others:
        return f"it has layers of type {', '.join(f'`{name}`' for name in others)}"
    if getattr(model, "_is_stateful", False):  # transformers' mark for recurrent layers
        return f"a model of type `{config.model_type}` carries a state from token to token"
    return None


def tree_masks(
    config: PreTrainedConfig,
    attention_mask: Bool[Tensor, "batch time keys"],
    position_ids: Int[Tensor, "batch time"],
    dtype: torch.dtype,
    key_position_ids: Int[Tensor, "batch keys"] | None = None,
    *,
    is_probe: bool = False,
) -> Float[Tensor, "batch 1 time keys"] | dict[str, Float[Tensor, "batch 1 time keys"]]:
    """Return what attention adds to its scores, for each type of layer where they differ.

    A layer of sliding attention over w tokens reads the w last ones of a token's own branch.

    Args:
        config: Of the model.
        attention_mask: `attention_mask[b, t, u]` where token t reads key u.
        position_ids: Of each token in its own branch.
        dtype: Of the model.
        key_position_ids: Of each key; by default the keys are the tokens.
        is_probe: Whether layers get masks of their own even where all tokens are within reach.
    """
    text = config.get_text_config()
    width, types = getattr(text, "sliding_window", None), set(getattr(text, "layer_types", None) or ())
    is_short = width is None or int(position_ids.max()) < width if position_ids.numel() else True
    full = _added(attention_mask, dtype)
    if width is None or types == {FULL} or (is_short and not is_probe):
        return full
    keys = position_ids if key_position_ids is None else key_position_ids
    is_near = position_ids[:, :, None] - keys[:, None, :] < width
    near = _added(attention_mask & is_near, dtype)
    return {FULL: full, SLIDING: near} if FULL in types else near


def _added(attention_mask: Bool[Tensor, "batch time keys"], dtype: torch.dtype) -> Float[Tensor, "batch 1 time keys"]:
    zeros = torch.zeros_like(attention_mask, dtype=dtype)
    return zeros.masked_fill(~attention_mask, torch.finfo(dtype).min)[:, None]
