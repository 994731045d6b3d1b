"""What the reward and the KL of one domain were at their best, and whether both have fallen since."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NGRAM = 4
MIN_STANDARD_ERRORS = 4.0
UNITS: Mapping[str, str] = {
    "reward": "reward",
    "teacher_kl": "KL per sequence (nats)",
    "length": "length (tokens)",
    "truncated": "truncated",
    "repeated": f"repeated {NGRAM}-grams",
    "entropy": "entropy (nats per token)",
}
SPREAD: Mapping[str, float] = {"lowest": 0.0, "highest": 1.0}
"""Bounds of a reward for curves that do not name them: 0 and 1."""


@dataclass
class HackCurve:
    """The rollout batches of one domain, as means over `span` of them.

    All comparisons hold for any reward: adding a constant to it, or scaling it by a positive one, changes nothing. A
    loss is relative to how far the best block lay above the lowest reward that any trajectory ever had, and is
    significant against the spread between trajectories.

    Args:
        span: Rollout batches in a mean.
        reward_drop: Relative loss of reward that is too much.
        kl_drop: Relative loss of KL that counts as an improved signal.
        alarm_batch: Rollout batch of the first alarm, counted over all domains; None before.
        num_batches: Rollout batches seen.
        batch: The run's number of rollout batches up to the last one seen.
        last: The means of the last `span` of them.
        best: The means of the block of `span` batches with the best reward.
        lowest: Of all single rewards.
        highest: Of all single rewards.
        is_new_best: Whether the last rollout batch ended the best block.
        has_alarm: Whether the alarm lasts.
    """

    span: int
    reward_drop: float
    kl_drop: float
    alarm_batch: int | None = None
    num_batches: int = 0
    batch: int = 0
    last: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    lowest: float = math.inf
    highest: float = -math.inf
    is_new_best: bool = False
    has_alarm: bool = False

    def observe(self, values: Mapping[str, float], batch: int | None = None) -> bool:
        """Take a rollout batch's means, and return whether there is an alarm.

        Args:
            values: The keys of `UNITS`, and `num_trajectories` of the rollout batch; beside them `reward_squared` (its
                mean), `lowest` and `highest` of the single rewards, which for rewards of 0 and 1 follow from the mean.
            batch: The run's number of rollout batches up to this one; by default those seen here.
        """
        values = {**SPREAD, "reward_squared": values["reward"], **values}
        self.num_batches += 1
        self.batch = self.num_batches if batch is None else batch
        self.last = [*self.last, values][-self.span :]
        self.lowest, self.highest = min(self.lowest, values["lowest"]), max(self.highest, values["highest"])
        recent = self.recent()
        is_block = self.num_batches % self.span == 0
        self.is_new_best = is_block and (not self.best or recent["reward"] > self.best["reward"])
        if self.is_new_best:
            self.best = recent
        self.has_alarm = bool(self.best) and self._has_fallen(recent)
        return self.has_alarm

    def _has_fallen(self, recent: Mapping[str, float]) -> bool:
        drop = self.best["reward"] - recent["reward"]
        error = math.sqrt(self._squared_error(self.best) + self._squared_error(recent))
        return (
            drop > self.reward_drop * (self.best["reward"] - self.lowest)
            and drop > MIN_STANDARD_ERRORS * error
            and recent["teacher_kl"] < (1 - self.kl_drop) * self.best["teacher_kl"]
        )

    def _squared_error(self, means: Mapping[str, float]) -> float:
        """Return the squared standard error of a mean reward, as if one trajectory at least had been another."""
        count, spread = means["num_trajectories"], self.highest - self.lowest
        variance = means["reward_squared"] - means["reward"] ** 2
        return max(variance, spread**2 / count) / count

    def recent(self) -> dict[str, float]:
        """Return the means of the last rollout batches, and how many trajectories they are of."""
        means = {name: sum(batch[name] for batch in self.last) / len(self.last) for name in (*UNITS, "reward_squared")}
        count = sum(batch["num_trajectories"] for batch in self.last)
        return {**means, "num_trajectories": count, "batch": self.batch}

    def changes(self) -> str:
        """Return what has changed since the best block, in words."""
        recent = self.recent()
        return ", ".join(f"{text} {self.best[name]:.3g} → {recent[name]:.3g}" for name, text in UNITS.items())

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the settings."""
        return {
            key: value
            for key, value in dataclasses.asdict(self).items()
            if key not in ("span", "reward_drop", "kl_drop", "is_new_best")
        }
