"""DARE: drop most of what each model adds to the base at random, and scale up what is left."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lightning_opd.models.merging_methods import Groups, MergeGroup, TensorGroup, WeightMerge, check_coefficient
from lightning_opd.models.merging_ties import check_density, elected_mean


@dataclass(frozen=True)
class Dare(WeightMerge):
    """Keep a random fraction of each model's differences to the base, divide them by it, and merge them.

    Every difference keeps its expectation. What is dropped depends on the seed, the tensor's name and the model's
    place among the models, and on nothing else.

    Args:
        density: Fraction that is kept; the paper's drop rate is 1 − density.
        coefficient: Scale of the merged differences; by default 1 with elected signs, else one over the number of
            models, the average.
        elects_sign: Whether those differences are averaged that have the sign of their sum, as TIES does; else they
            are added up.
        seed: Of the draws.

    Reference:
        Yu et al. 2024, Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch.
    """

    density: float = 0.1
    coefficient: float | None = None
    elects_sign: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_density(self.density)
        check_coefficient(self.coefficient)

    @override
    def plan(self, groups: Groups) -> MergeGroup:
        def merged(group: TensorGroup) -> Tensor:
            kept = [
                self._rescaled(delta, group.name, index)
                for index, delta in enumerate(group.deltas())
                if delta is not None
            ]
            if not kept:
                return group.origin
            summed = elected_mean(kept) if self.elects_sign else torch.stack(kept).sum(dim=0)
            default = 1.0 if self.elects_sign else 1 / len(group.models)
            return group.origin + (default if self.coefficient is None else self.coefficient) * summed

        return merged

    @property
    @override
    def title(self) -> str:
        scale = "" if self.coefficient is None else f", coefficient {self.coefficient:g}"
        return f"DARE{' and TIES' if self.elects_sign else ''}, density {self.density:g}{scale}, seed {self.seed}"

    def _rescaled(self, delta: Tensor, name: str, index: int) -> Tensor:
        digest = hashlib.sha256(f"{self.seed}/{index}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        is_kept = torch.rand(delta.shape, generator=generator) < self.density
        return torch.where(is_kept, delta / self.density, 0.0)
