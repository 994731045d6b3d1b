"""A reward beside the task's own."""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod

from lightning_opd.errors import ConfigError
from lightning_opd.types import Trajectory

MAX_REWARD = 1e38
"""Largest absolute reward: rewards are kept in float32, where more would be infinite."""


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
        ConfigError: It is None, no number, NaN, or infinite (also only in float32).
    """
    try:
        number = float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not abs(number) <= MAX_REWARD:
        msg = (
            f"{source} returned the reward {value!r} for the prompt with key `{key}`; expected a finite number. "
            "Return 0.0 where there is nothing to reward."
        )
        raise ConfigError(msg)
    return number
