"""How a model takes a cache of keys and values."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""Names of a forward's cache; transformers 5.24 gave it a new one."""


def cache_argument(model: PreTrainedModel) -> str | None:
    """Return the name under which the model's forward takes a cache, or None if it takes none."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in parameters), None)
