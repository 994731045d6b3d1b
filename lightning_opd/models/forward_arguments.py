"""Arguments of a model's forward that differ between models and versions of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""Names of a forward's cache; transformers 5.24 gave it a new one."""


def cache_argument(model: PreTrainedModel) -> str | None:
    """Return the name under which the model's forward takes a cache, or None if it takes none."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in parameters), None)


def logits_to_keep(model: PreTrainedModel, columns: Sequence[int], device: torch.device) -> dict[str, Tensor | int]:
    """Return the argument with which the model's forward makes the logits of these columns only.

    A model that takes no tensor of columns makes those of the last one, and some make all.
    A tensor, since a slice of the states is not contiguous: `torch.nn.functional.linear` would copy an output matrix
    that is not trained once for each row of the batch.
    """
    parameter = inspect.signature(model.forward).parameters.get("logits_to_keep")
    if parameter is None:
        return {}
    if "Tensor" not in str(parameter.annotation):
        return {parameter.name: 1}
    return {parameter.name: torch.tensor(columns, dtype=torch.long, device=device)}
