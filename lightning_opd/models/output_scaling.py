"""What a model does to its logits after the output matrix: a factor, a soft cap, both, or something else."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_opd.types import LinearHead

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
"""Entries of a model's configuration that multiply or divide its logits."""

SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Entries of a model's configuration that bound its logits by cap · tanh(logits / cap)."""

PROBED_LOGITS = (0.5, 4.0, 32.0, 256.0, 2048.0)
"""Largest logit of each probed position: small ones show a factor, large ones a cap, also in bfloat16."""


def probing_states(head: nn.Linear) -> Float[Tensor, "one time hidden"]:
    """Return states whose logits span all sizes, one position for each of `PROBED_LOGITS`.

    They are the same in every call and leave the random state as it is.
    """
    weight = head.weight
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, len(PROBED_LOGITS), weight.shape[1], generator=generator).to(weight)
    largest = nn.functional.linear(states, weight).abs().amax(dim=-1, keepdim=True).clamp(min=1e-6)
    return states * (torch.tensor(PROBED_LOGITS).to(weight)[:, None] / largest)


def explain(
    products: Float[Tensor, "*shape vocab"], logits: Float[Tensor, "*shape vocab"], config: PretrainedConfig
) -> tuple[float, float | None] | None:
    """Return the factor and the soft cap that make a model's logits of its matrix products, or None.

    Args:
        products: States times the output matrix, plus the bias.
        logits: What the model returned for the same states.
        config: The model's; its entries are the factors and caps that are tried.
    """
    tolerance = 4 * torch.finfo(logits.dtype).eps * logits.abs().amax(dim=-1, keepdim=True)
    for scale, soft_cap in _candidates(config):
        made = LinearHead(None, None, products.shape[-1], scale=scale, soft_cap=soft_cap).finish(products)
        if made.shape == logits.shape and bool(((made.to(logits) - logits).abs() <= tolerance).all()):
            return scale, soft_cap
    return None


def _candidates(config: PretrainedConfig) -> Iterator[tuple[float, float | None]]:
    """Yield what the configuration may mean, the plainest first."""
    text_config = config.get_text_config(decoder=True)
    named = [float(value) for name in SCALES if (value := getattr(text_config, name, None))]
    scales = [1.0, *named, *(1 / value for value in named)]
    caps = [None, *(float(value) for name in SOFT_CAPS if (value := getattr(text_config, name, None)))]
    yield from product(scales, caps)
