"""Means that add up over micro-batches and ranks: sums and counts as the state of a metric."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override


class Quotients(Metric):
    """Named quotients of two sums, each taken over everything since the last `reset` and over all ranks.

    Every rank must update the same names in the same order.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        """Start without any name."""
        super().__init__()
        self.add_state("sums", torch.zeros(0, 2, dtype=torch.float64), dist_reduce_fx="sum")
        self._names: dict[str, int] = {}

    @override
    def update(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add to the quotients.

        Args:
            pairs: Name → (sum, count), detached scalars.
        """
        for name in pairs:
            self._names.setdefault(name, len(self._names))
        num_new = len(self._names) - len(self.sums)
        sums = torch.nn.functional.pad(self.sums, (0, 0, 0, num_new))
        for name, pair in pairs.items():
            values = torch.stack([value.to(torch.float64) for value in pair]).to(sums.device)
            sums[self._names[name]] += values
        self.sums = sums

    @override
    def compute(self) -> dict[str, Tensor]:
        """Return name → sum ÷ count, without names that counted nothing."""
        pairs = zip(sorted(self._names, key=self._names.__getitem__), self.sums, strict=True)
        return {name: value / count for name, (value, count) in pairs if count > 0}

    @override
    def reset(self) -> None:
        """Forget sums and names."""
        super().reset()
        self._names = {}
