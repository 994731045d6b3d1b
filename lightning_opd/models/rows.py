"""Rows of tokens in one forward: padded side by side, or packed one behind the other; and which way a model reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from lightning_opd.models.modes import evaluating
from lightning_opd.models.tree_masks import obstacle_to_trees

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE_LENGTH = 4
"""Tokens of each row, and paddings after them, with which it is tried how a model reads."""


class Forward(Protocol):
    """A model's own forward, as far as the logits."""

    def __call__(self, token_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None = None) -> Tensor:
        """Return the logits after each token; positions count the tokens of the mask unless they are given."""


def is_right_padded(attention_mask: Bool[Tensor, "batch time"]) -> bool:
    """Return whether each row's padding comes after all of its tokens."""
    return bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all())


def row_positions(token_ids: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Return the position of each token in its row, padding included."""
    return torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids)


def pack(
    token_ids: Int[Tensor, "batch time"], attention_mask: Bool[Tensor, "batch time"]
) -> tuple[Int[Tensor, "1 tokens"], Int[Tensor, "1 tokens"]]:
    """Return the tokens of all rows in one row without padding, and the position of each in its own row.

    Example:
        >>> token_ids = torch.tensor([[7, 8, 9], [5, 6, 0]])
        >>> pack(token_ids, token_ids > 0)
        (tensor([[7, 8, 9, 5, 6]]), tensor([[0, 1, 2, 0, 1]]))
    """
    own = attention_mask.cumsum(dim=1) - 1
    return token_ids[attention_mask][None], own[attention_mask][None]


def unpack(
    states: Float[Tensor, "1 tokens hidden"], attention_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time hidden"]:
    """Return what belongs to each token of a packed row where the token was; zero at padding."""
    rows = states.new_zeros(*attention_mask.shape, states.shape[-1])
    rows[attention_mask] = states[0]
    return rows


@torch.no_grad()
def reads_padding(model: PreTrainedModel, forward: Forward, vocab_size: int) -> bool:
    """Return whether a real token's logits without a mask depend on the padding after it.

    Args:
        model: Whose forward it is.
        forward: Tried with a few tokens.
        vocab_size: Tokens that the model knows.
    """
    token_ids = torch.arange(1, 1 + PROBE_LENGTH, device=_device(model))[None] % vocab_size
    padded = torch.nn.functional.pad(token_ids, (0, PROBE_LENGTH))
    with evaluating(model):
        expected = forward(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
        got = forward(padded, None, row_positions(padded))[:, :PROBE_LENGTH]
    scale = float(expected.abs().max())
    return not float((got - expected).abs().max()) <= _tolerance(model, expected) * scale


@torch.no_grad()
def reads_packed_rows(model: PreTrainedModel, forward: Forward, vocab_size: int) -> bool:
    """Return whether a model reads each row of a packed one as it reads it alone, at no cost for the others.

    Only attention with kernels for rows of unlike length (flash attention) can: transformers tells it where rows begin
    by their positions. Any other needs a mask of tokens × tokens, and a recurrent or a convolutional layer reads on
    into the next row. An architecture might not hand the positions on to its attention; so two rows are tried.

    Args:
        model: Whose forward it is.
        forward: Tried with a few tokens.
        vocab_size: Tokens that the model knows.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask

    attention = model.config.get_text_config(decoder=True)._attn_implementation  # transformers' only name for it
    if ALL_MASK_ATTENTION_FUNCTIONS.get(attention) is not flash_attention_mask or obstacle_to_trees(model) is not None:
        return False
    rows = torch.arange(1, 1 + 2 * PROBE_LENGTH, device=_device(model)).view(2, PROBE_LENGTH) % vocab_size
    packed, own = pack(rows, torch.ones_like(rows, dtype=torch.bool))
    with evaluating(model):
        expected = torch.cat([forward(row[None], None, row_positions(row[None])) for row in rows], dim=1)
        got = forward(packed, None, own)
        as_one = forward(packed, None, row_positions(packed))
    scale = float((as_one - expected).norm())  # what it does to the second row when it reads the first one, too
    return float((got - expected).norm()) <= _tolerance(model, expected) * scale


def _device(model: PreTrainedModel) -> torch.device:
    return next(model.parameters()).device


def _tolerance(model: PreTrainedModel, logits: Tensor) -> float:
    """Return the largest relative difference that is put down to rounding."""
    device = logits.device.type
    is_coarse = device != "cpu" or logits.dtype.itemsize < 4 or isinstance(model, FSDPModule)
    return 1e-1 if is_coarse or torch.is_autocast_enabled(device) else 1e-3
