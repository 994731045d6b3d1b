"""Rules that merge the same tensor of several models: what all have in common, the average, and task arithmetic."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError


@dataclass(frozen=True)
class TensorGroup:
    """The same floating-point tensor of the base and of each model.

    Args:
        name: Of the tensor.
        base: That of the common ancestor.
        models: That of each model; None where a model has the base's own.
    """

    name: str
    base: Tensor
    models: Sequence[Tensor | None]

    @property
    def tensors(self) -> list[Tensor]:
        """That of each model, the base's own filled in."""
        return [self.base if model is None else model for model in self.models]

    @property
    def origin(self) -> Tensor:
        """The base's in the dtype of the arithmetic: float32, or the widest of all."""
        return self.base.to(at_least_float32([self.base, *self.tensors]))

    def deltas(self) -> list[Tensor | None]:
        """Return what each model adds to the base, in the dtype of `origin`; None where it adds nothing."""
        origin = self.origin
        return [None if model is None else model.to(origin.dtype) - origin for model in self.models]


Groups: TypeAlias = Callable[[], Iterator[TensorGroup]]
"""Reads all groups once, one after the other, so that no more than one is in memory."""

MergeGroup: TypeAlias = Callable[[TensorGroup], Tensor]
"""Returns the merged tensor of a group, in float32 or wider."""


class WeightMerge(ABC):
    """Merges models by arithmetic on their weights."""

    @abstractmethod
    def plan(self, groups: Groups) -> MergeGroup:
        """Return what merges one group, after reading all of them as often as the rule needs: never, for most.

        Args:
            groups: The floating-point tensors of the models.
        """

    @property
    @abstractmethod
    def title(self) -> str:
        """The rule and its numbers in a few words."""


@dataclass(frozen=True)
class Average(WeightMerge):
    """The plain average of the models."""

    @override
    def plan(self, groups: Groups) -> MergeGroup:
        return lambda group: average(group.tensors)

    @property
    @override
    def title(self) -> str:
        return "plain average"


@dataclass(frozen=True)
class TaskArithmetic(WeightMerge):
    """The base, plus the scaled sum of what the models add to it.

    Args:
        coefficient: Scale of the sum.

    Reference:
        Ilharco et al. 2023, Editing Models with Task Arithmetic.
    """

    coefficient: float = 0.3

    def __post_init__(self) -> None:
        """Refuse a coefficient that is no number."""
        check_coefficient(self.coefficient)

    @override
    def plan(self, groups: Groups) -> MergeGroup:
        return lambda group: task_arithmetic(group.base, group.tensors, self.coefficient)

    @property
    @override
    def title(self) -> str:
        return f"task arithmetic, coefficient {self.coefficient:g}"


def average(models: Sequence[Tensor]) -> Tensor:
    """Return the mean of the models' tensors, in float32 or wider.

    Args:
        models: The same tensor of each model.

    Example:
        >>> average([torch.tensor([2.0]), torch.tensor([4.0])])
        tensor([3.])
    """
    total = torch.zeros_like(models[0], dtype=at_least_float32(models))
    for model in models:
        total += model
    return total / len(models)


def task_arithmetic(base: Tensor, models: Sequence[Tensor], coefficient: float) -> Tensor:
    """Return base + coefficient × Σ (model − base), in float32 or wider.

    Args:
        base: Tensor of the common ancestor.
        models: The same tensor of each model.
        coefficient: Scale of the summed differences.

    Example:
        >>> task_arithmetic(torch.tensor([1.0]), [torch.tensor([2.0]), torch.tensor([4.0])], 0.5)
        tensor([3.])

    Reference:
        Ilharco et al. 2023, Editing Models with Task Arithmetic.
    """
    origin = base.to(at_least_float32([base, *models]))
    total = torch.zeros_like(origin)
    for model in models:
        total += model.to(origin.dtype) - origin
    return origin + coefficient * total


def at_least_float32(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return the widest dtype of the tensors, float32 at least."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def check_coefficient(coefficient: float | None) -> None:
    """Refuse a coefficient that is no number.

    Raises:
        ConfigError: It is infinite or no number.
    """
    if coefficient is not None and not math.isfinite(coefficient):
        msg = f"`coefficient` must be a finite number, got {coefficient}. Leave it out for the plain average."
        raise ConfigError(msg)
