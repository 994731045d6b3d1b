"""A learning-rate schedule that knows how long the training is."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from lightning_opd.errors import ConfigError


class WarmupCosine(LRScheduler):
    """Rise linearly over the first steps, then fall along a half cosine until the training ends.

    The module gives the number of optimiser steps of the run (the trainer's `max_steps`, or what its epochs come to). A
    run that goes on with another number follows the curve of the new one, and says so.

    Args:
        optimizer: Whose learning rates are multiplied.
        warmup_steps: Steps until the full learning rate; the first has `1 / (warmup_steps + 1)` of it.
        final_fraction: Fraction of the full learning rate at the last step.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = WarmupCosine(optimizer, warmup_steps=1, final_fraction=0.5)
        >>> schedule.set_num_steps(4)
        >>> [round(schedule.fraction(step), 3) for step in range(4)]
        [0.5, 1.0, 0.75, 0.5]

    Reference:
        Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts (2017), equation 5.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int = 10, final_fraction: float = 0.1) -> None:
        """Check the settings."""
        if warmup_steps < 0:
            msg = f"`warmup_steps` must be at least 0, got {warmup_steps}."
            raise ConfigError(msg)
        if not 0 <= final_fraction <= 1:
            msg = f"`final_fraction` must lie in [0, 1], got {final_fraction}."
            raise ConfigError(msg)
        self.warmup_steps, self.final_fraction = warmup_steps, final_fraction
        self._num_steps: int | None = None
        super().__init__(optimizer)

    def set_num_steps(self, num_steps: float) -> None:
        """Tell how many optimiser steps the run has.

        Raises:
            ConfigError: The run has no end.
        """
        if not 1 <= num_steps < math.inf:
            msg = "`WarmupCosine` needs an end of the training: set `trainer.max_steps` or `trainer.max_epochs`."
            raise ConfigError(msg)
        self._num_steps = int(num_steps)

    def fraction(self, step: int) -> float:
        """Return the fraction of the full learning rate at a step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self._num_steps is None:
            return 1.0
        progress = (step - self.warmup_steps) / max(1, self._num_steps - 1 - self.warmup_steps)
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    @override
    def get_lr(self) -> list[float | Tensor]:
        return [base * self.fraction(self.last_epoch) for base in self.base_lrs]

    @override
    def state_dict(self) -> dict[str, Any]:
        own = {"last_epoch": self.last_epoch, "base_lrs": self.base_lrs, "_last_lr": self._last_lr}
        return {**own, "num_steps": self._num_steps}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on; where the run has become longer or shorter, with the learning rates of its new length."""
        before = state_dict.get("num_steps", self._num_steps)
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "num_steps"})
        if before == self._num_steps:
            return
        old, new = self._last_lr, self.get_lr()
        rank_zero_warn(
            f"The run was to have {before} steps, and is to have {self._num_steps}: `WarmupCosine` goes on from step "
            f"{self.last_epoch} with a learning rate of {float(new[0]):g}, which was {float(old[0]):g}."
        )
        self._last_lr = new
        for group, lr in zip(self.optimizer.param_groups, new, strict=True):
            group["lr"] = lr
