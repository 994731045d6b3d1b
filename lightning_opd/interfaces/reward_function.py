"""A reward beside the task's own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from lightning_opd.errors import ConfigError
from lightning_opd.types import Trajectory


class RewardFunction(ABC):
    """Rewards a finished episode, beside the task's own outcome."""

    @abstractmethod
    def __call__(self, trajectory: Trajectory) -> float:
        """Return the reward."""


def finite_reward(value: object, source: str, key: str) -> float:
    """Return a reward as a number.

    Args:
        value: What was returned.
        source: The function or class that returned it.
        key: Of the prompt.

    Raises:
        ConfigError: It is None, no number, NaN or infinite.
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        msg = (
            f"{source} returned the reward {value!r} for the prompt with key `{key}`; expected a finite number. "
            "Return 0.0 where there is nothing to reward."
        )
        raise ConfigError(msg)
    return float(value)
