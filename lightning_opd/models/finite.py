"""Weights that are NaN or infinite are never written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch


class NonFiniteWeightsError(RuntimeError):
    """A state dict holds NaN or infinite weights; nothing was written."""


def are_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Return whether all numbers of some tensors are finite.

    One pass adds them up, since a sum is finite only if all that it adds are; where one is not, because finite numbers
    were too many, each number is looked at.
    """
    filled = [tensor for tensor in tensors if tensor.numel()]
    if not filled:
        return True
    sums = [tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)) for tensor in filled]
    if bool(torch.stack([value.isfinite() for value in sums]).all()):
        return True
    return bool(torch.stack([tensor.isfinite().all() for tensor in filled]).all())


def check_finite(state: Mapping[str, object], what: str) -> None:
    """Raise unless all tensors of a state dict are finite.

    Raises:
        NonFiniteWeightsError: With the names of some that are not.
    """
    names = list(_not_finite(state))
    if names:
        msg = (
            f"{what} was not written: {len(names)} tensors are not finite, for example {', '.join(names[:3])}. The "
            "last finite checkpoint is still there; lower the learning rate, or look for a teacher or reward that "
            "gives NaN."
        )
        raise NonFiniteWeightsError(msg)


def _not_finite(state: Mapping[str, object]) -> Iterator[str]:
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not are_finite([value]):
            yield name
