"""Refuses what a callback must not do to a rollout batch."""

from __future__ import annotations

from lightning_opd.errors import ConfigError
from lightning_opd.types import RolloutBatch


def check_shapes(rollouts: RolloutBatch, culprit: str) -> None:
    """Raise if a callback left something of another shape than the training step expects."""
    per_token, per_row = rollouts.token_ids.shape, rollouts.rewards.shape
    for name, expected in (("distill_mask", per_token), ("distill_weights", per_row), ("outcome_advantages", per_row)):
        got = getattr(rollouts, name).shape
        if got != expected:
            msg = f"{culprit} left `{name}` with shape {tuple(got)}, expected {tuple(expected)}."
            raise ConfigError(msg)
