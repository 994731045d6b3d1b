"""Weighted mixtures of teachers, as rows name them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from lightning_opd.errors import ConfigError

_PART = re.compile(r"(.+?):([0-9.eE+-]+?)(?:\+|$)")


def mixture_name(weights: Mapping[str, object]) -> str:
    """Return the name of a mixture of teachers, such as `code:0.3+math:0.7`; of one alone, its own.

    Raises:
        ConfigError: The weights are not positive numbers that add up to 1.

    Example:
        >>> mixture_name({"math": 0.7, "code": 0.3})
        'code:0.3+math:0.7'
    """
    numbers = [w for w in weights.values() if isinstance(w, int | float) and not isinstance(w, bool) and 0 < w <= 1]
    if len(numbers) < len(weights) or not math.isclose(sum(numbers), 1, abs_tol=1e-6):
        msg = f"expected weights of teachers that are positive and add up to 1, got {dict(weights)}"
        raise ConfigError(msg)
    if len(weights) == 1:
        return next(iter(weights))
    return "+".join(f"{name}:{float(weight)!r}" for name, weight in sorted(zip(weights, numbers, strict=True)))


@lru_cache(maxsize=4096)
def mixture_weights(name: str) -> Mapping[str, float]:
    """Return the weights that a mixture's name says, by teacher; of any other name, itself with weight 1.

    Example:
        >>> dict(mixture_weights("code:0.3+math:0.7"))
        {'code': 0.3, 'math': 0.7}
        >>> dict(mixture_weights("math"))
        {'math': 1.0}
    """
    parts = list(_PART.finditer(name))
    try:
        weights = {part[1]: float(part[2]) for part in parts}
        if len(parts) > 1 and parts[-1].end() == len(name) and mixture_name(weights) == name:
            return MappingProxyType(weights)
    except (ValueError, ConfigError):
        pass
    return MappingProxyType({name: 1.0})
