"""Whether a model's cache can carry rollouts, found out before the first one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import token_logprobs
from lightning_opd.models import cache_argument, evaluating, unsharded
from lightning_opd.types import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE_LENGTHS = (9, 2)
"""Tokens of the probing prompts: their difference exceeds the kernel of any convolution in use."""


def keeps_states(model: PreTrainedModel) -> bool:
    """Whether some layer keeps more than keys and values: a recurrent state, the inputs of a convolution."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if getattr(model, "_is_stateful", False):  # transformers' own mark
        return True
    return any(
        type(x) not in (DynamicLayer, DynamicSlidingWindowLayer) for x in DynamicCache(config=model.config).layers
    )


def probing_prompts(model: PreTrainedModel) -> list[list[int]]:
    """Return prompts of different lengths."""
    size = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]  # a parameter's
    return [[(7 * i + length) % size for i in range(length)] for length in PROBE_LENGTHS]


def check_cache(model: PreTrainedModel, generate: Callable[[bool], list[Sample]]) -> bool:
    """Return whether prompts of different lengths may be padded to one batch.

    A model that keeps more than keys and values generates a few tokens, which a plain forward scores again.

    Args:
        model: In any mode.
        generate: Generates several responses for each of `probing_prompts`, with padded prompts or without.

    Raises:
        ConfigError: The model takes no cache, or generates other tokens with it than its log-probs say.
    """
    if cache_argument(model) is None:
        raise ConfigError(_refusal(model, "its forward takes no cache of transformers' kind"))
    if not keeps_states(model):
        return True
    noise = torch.finfo(model.dtype).eps
    try:
        if _largest_error(model, generate(True)) <= max(1e-3, 16 * noise):
            return True
        error = _largest_error(model, generate(False))
    except (RuntimeError, TypeError, AttributeError, ValueError, LookupError) as cause:
        raise ConfigError(_refusal(model, f"its cache fails with {type(cause).__name__}: {cause}")) from cause
    if not error <= max(1e-2, 64 * noise):
        raise ConfigError(
            _refusal(model, f"tokens generated with its cache differ by {error:.1g} nats from a plain forward's")
        )
    return False


@torch.no_grad()
def _largest_error(model: PreTrainedModel, samples: Sequence[Sample]) -> float:
    """Return the largest difference in nats of the samples' log-probs from those of a plain forward."""
    prompts = probing_prompts(model)
    per_prompt = len(samples) // len(prompts)
    device: torch.device = model.get_input_embeddings().weight.device  # type: ignore[assignment]  # a parameter's
    errors: list[Tensor] = []
    with evaluating(model), unsharded(model):
        for row, sample in enumerate(samples):
            prompt = prompts[row // per_prompt]
            ids = torch.tensor([[*prompt, *sample.token_ids]], device=device)
            expected = token_logprobs(model(input_ids=ids, use_cache=False).logits, ids)[0, len(prompt) :]
            errors.append((expected - torch.tensor(sample.logprobs).to(expected)).abs().max())
    return float(torch.stack(errors).max())


def _refusal(model: PreTrainedModel, reason: str) -> str:
    return (
        f"`InProcessEngine` cannot generate with architecture `{model.config.model_type}`: {reason}. "
        "Use a student of another architecture, or `VLLMEngine`, if vLLM runs this one."
    )
