from __future__ import annotations

import pytest
import torch

from lightning_opd.models import are_finite


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(value: float, dtype: torch.dtype) -> None:
    whole = [torch.ones(3, 4, dtype=dtype), torch.empty(0, dtype=dtype), torch.zeros(5, dtype=dtype)]
    assert are_finite(whole)
    whole[2][4] = value
    assert not are_finite(whole)


def test_infinite_numbers_that_cancel_are_found() -> None:
    assert not are_finite([torch.tensor([float("inf"), float("-inf")])])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_finite_numbers_may_add_up_to_infinity(dtype: torch.dtype) -> None:
    assert are_finite([torch.full((8,), torch.finfo(dtype).max, dtype=dtype)])
    assert are_finite([])
