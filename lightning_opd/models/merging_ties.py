"""TIES: trim what each model adds to the base, elect a sign for every weight, and average those that agree with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.models.merging_methods import Groups, MergeGroup, TensorGroup, WeightMerge, check_coefficient

_LOW_BITS = 16
"""A float32's bits are counted in two halves, the upper one first."""


@dataclass(frozen=True)
class Ties(WeightMerge):
    """Trim, elect sign, disjoint mean, and add the result to the base.

    Of each model's difference to the base, the largest magnitudes are kept. The sign of a weight is that of the sum
    over the models; it gets the mean of those kept differences that have this sign, and nothing where the sum is 0.

    Args:
        density: Fraction of the weights whose differences are kept.
        coefficient: Scale of the result.
        per_tensor: Whether each tensor keeps this fraction of its own, as mergekit does; by default the whole model
            keeps the fraction with the largest magnitudes, as the paper does. Equal magnitudes at the border are kept.

    Reference:
        Yadav et al. 2023, TIES-Merging: Resolving Interference When Merging Models, algorithm 1.
    """

    density: float = 0.2
    coefficient: float = 1.0
    per_tensor: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_density(self.density)
        check_coefficient(self.coefficient)

    @override
    def plan(self, groups: Groups) -> MergeGroup:
        thresholds = None if self.per_tensor or self.density == 1 else smallest_kept(groups, self.density)

        def merged(group: TensorGroup) -> Tensor:
            kept = []
            for index, delta in enumerate(group.deltas()):
                if delta is None:
                    continue
                if self.density < 1:
                    own = _kth_largest(delta, self.density) if thresholds is None else thresholds[index]
                    delta = torch.where(_magnitudes(delta) >= own, delta, 0.0)  # noqa: PLW2901  # one after the other
                kept.append(delta)
            return group.origin + self.coefficient * elected_mean(kept) if kept else group.origin

        return merged

    @property
    @override
    def title(self) -> str:
        return f"TIES, density {self.density:g}, coefficient {self.coefficient:g}"


def elected_mean(deltas: Sequence[Tensor]) -> Tensor:
    """Return, of each weight, the mean of the differences that have the sign of their sum; 0 where it is 0.

    Args:
        deltas: The same tensor of each model's difference to the base; zeros take no part.

    Example:
        >>> elected_mean([torch.tensor([3.0, 1.0, 0.0]), torch.tensor([-1.0, 3.0, 2.0])])
        tensor([3., 2., 2.])
    """
    sign = torch.stack(tuple(deltas)).sum(dim=0).sign()
    total, count = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for delta in deltas:
        agrees = delta.sign() == sign
        total += torch.where(agrees, delta, 0.0)
        count += agrees
    return total / count.clamp(min=1)


def smallest_kept(groups: Groups, density: float) -> list[float]:
    """Return the magnitude from which on each model's differences are among the largest fraction of them all.

    The differences never are in memory together: their float32 bits, which order them, are counted in two passes,
    16 bits each. Tensors that a model has from the base do not count.

    Args:
        groups: Reads the tensors of all models.
        density: Fraction that is kept, of at least one weight.
    """
    upper, low = _counts(groups, None), []
    places = [_place(counts, max(1, int(density * int(counts.sum())))) for counts in upper]
    lower = _counts(groups, [place for place, _ in places])
    for (high, rest), counts in zip(places, lower, strict=True):
        bits = (high << _LOW_BITS) | _place(counts, rest)[0]
        low.append(float(torch.tensor(bits, dtype=torch.int32).view(torch.float32)))
    return low


def check_density(density: float) -> None:
    """Refuse what is no fraction.

    Raises:
        ConfigError: The density is not in (0, 1].
    """
    if not 0 < density <= 1:
        msg = f"`density` is the fraction of the differences that is kept, above 0 and at most 1; got {density}."
        raise ConfigError(msg)


def _magnitudes(delta: Tensor) -> Tensor:
    return delta.abs().float()


def _kth_largest(delta: Tensor, density: float) -> Tensor:
    magnitudes = _magnitudes(delta).flatten()
    count = max(1, int(density * magnitudes.numel()))
    return magnitudes.kthvalue(magnitudes.numel() - count + 1).values


def _counts(groups: Groups, high: Sequence[int] | None) -> list[Tensor]:
    """Return how many of each model's magnitudes have each upper half; with `high`, each lower half below that one."""
    totals: list[Tensor] = []
    for group in groups():
        totals = totals or [torch.zeros(1 << _LOW_BITS, dtype=torch.long) for _ in group.models]
        for index, delta in enumerate(group.deltas()):
            if delta is None:
                continue
            bits = _magnitudes(delta).flatten().view(torch.int32)
            halves = bits >> _LOW_BITS
            if high is not None:
                halves = bits[halves == high[index]] & ((1 << _LOW_BITS) - 1)
            totals[index] += torch.bincount(halves, minlength=1 << _LOW_BITS)
    return totals


def _place(counts: Tensor, rank: int) -> tuple[int, int]:
    """Return the bin that holds the rank-th largest value, and its rank among those of the bin."""
    at_least = counts.flip(0).cumsum(0).flip(0)  # values in this bin or a larger one
    place = max(0, int((at_least >= rank).sum()) - 1)
    return place, rank - int(at_least[place] - counts[place])
