"""No distillation on trajectories with a format error."""

from __future__ import annotations

from collections import Counter

import lightning as L  # Lightning's own convention
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import OPDCallback
from lightning_opd.types import RolloutBatch, Signal, Trajectory


class FormatErrorMask(OPDCallback):
    """Give trajectories that break a format rule no distillation signal.

    Distillation rewards a teacher's undesirable pattern also where it breaks the format; the mask removes
    that reward. The outcome gradient of masked trajectories stays, and the denominator stays, so that good
    trajectories do not weigh more as failures rise.

    Logs `train/masked` (fraction of trajectories with an error) and `train/format_error/<rule>`.

    Args:
        warn_above: Fraction of masked trajectories above which to warn.
        from_erring_turn: Whether an episode keeps the signal of the turns before its first error.

    Reference:
        Liu, Fu, Shen, Jiang, On-policy distillation in model merging (2026), section 2;
        `.github/THEORY.md`, section 9.
    """

    def __init__(self, warn_above: float = 0.5, from_erring_turn: bool = False) -> None:  # a key in YAML
        """Check the fraction."""
        if not 0 <= warn_above <= 1:
            msg = f"`warn_above` is a fraction between 0 and 1, got {warn_above}."
            raise ConfigError(msg)
        self.warn_above, self.from_erring_turn = warn_above, from_erring_turn
        self._has_warned = False

    @property
    @override
    def changes_rollouts(self) -> bool:
        return True

    @property
    @override
    def signals(self) -> frozenset[Signal]:
        return frozenset()

    @override
    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        bad = rollouts.has_format_error
        if self.from_erring_turn:
            starts = torch.tensor([_first_error(t) for t in rollouts.trajectories], device=bad.device)
            positions = torch.arange(rollouts.token_ids.shape[1], device=bad.device)
            rollouts.distill_mask = rollouts.distill_mask & (positions < starts[:, None])
        else:
            rollouts.distill_weights = torch.where(bad, 0.0, rollouts.distill_weights)
        count = rollouts.num_trajectories.new_tensor(len(rollouts))
        metrics = {"train/masked": (bad.sum().double(), count)}
        names = sorted(rule.name for rule in trainer.datamodule.task.format_rules())  # type: ignore[attr-defined]  # set by Lightning
        broken = Counter(name for trajectory in rollouts.trajectories for name in trajectory.format_errors)
        for name in names:
            metrics[f"train/format_error/{name}"] = (count.new_tensor(broken[name]), count)
        rollouts.metrics = {**rollouts.metrics, **metrics}
        fraction = float(bad.double().mean())
        if fraction > self.warn_above and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"{fraction:.0%} of a rollout batch's trajectories have format errors and get no distillation signal "
                f"(most broken: {broken.most_common(1)[0][0] if broken else 'unknown'}). Start from a student that "
                "knows the format (a supervised warm start), or check the task's format rules."
            )


def _first_error(trajectory: Trajectory) -> int:
    """Return where the first reply with a format error begins, or the trajectory's length."""
    return next((turn.start for turn in trajectory.turns if turn.format_errors), len(trajectory.token_ids))
