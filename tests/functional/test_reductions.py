from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_opd import functional
from lightning_opd.functional.reductions import Reduction, SequenceMean, TokenMean, TrajectorySum
from tests.implementations import implementations

every_reduction = pytest.mark.parametrize("reduction", implementations(Reduction, functional))


def rollouts() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    losses = torch.randn(6, 5, dtype=torch.float64)
    mask = torch.rand(6, 5) < 0.6
    mask[:, 2] = True
    return losses, mask, mask.sum().double(), torch.tensor(6.0, dtype=torch.float64)


@every_reduction
@pytest.mark.parametrize("split", [(6,), (3, 3), (1, 5), (1, 2, 3), (1, 1, 1, 1, 1, 1)])
def test_micro_batches_add_up_to_the_rollout_batch_in_value_and_gradient(
    reduction: Reduction, split: tuple[int, ...]
) -> None:
    losses, mask, num_tokens, num_trajectories = rollouts()
    losses.requires_grad_()
    whole = reduction(losses, mask, num_tokens, num_trajectories)
    parts = [
        reduction(part, kept, num_tokens, num_trajectories)
        for part, kept in zip(losses.split(split), mask.split(split), strict=True)
    ]
    total = torch.stack(parts).sum()
    torch.testing.assert_close(total, whole, rtol=0, atol=1e-12)
    (actual,), (expected,) = (torch.autograd.grad(x, losses) for x in (total, whole))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@every_reduction
@pytest.mark.parametrize("garbage", [torch.inf, -torch.inf, torch.nan])
def test_masked_tokens_change_nothing_and_receive_no_gradient(reduction: Reduction, garbage: float) -> None:
    losses, mask, num_tokens, num_trajectories = rollouts()
    spoilt = losses.masked_fill(~mask, garbage).requires_grad_()
    value = reduction(spoilt, mask, num_tokens, num_trajectories)
    assert value == reduction(losses, mask, num_tokens, num_trajectories)
    (gradient,) = torch.autograd.grad(value, spoilt)
    assert not gradient[~mask].any()
    assert gradient[mask].all()


@every_reduction
def test_an_all_masked_batch_costs_zero_and_keeps_its_graph(reduction: Reduction) -> None:
    losses = torch.full((2, 3), torch.inf, requires_grad=True)
    value = reduction(losses, torch.zeros(2, 3, dtype=torch.bool), torch.tensor(0.0), torch.tensor(2.0))
    assert value.item() == 0.0
    (gradient,) = torch.autograd.grad(value, losses)
    assert not gradient.any()


@every_reduction
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_reductions_add_up_in_at_least_float32(reduction: Reduction, dtype: torch.dtype, expected: torch.dtype) -> None:
    ones = torch.ones(1, 3001, dtype=dtype)  # a count that neither half-precision format can hold
    count = torch.tensor(3001.0, dtype=expected)
    value = reduction(ones, torch.ones(1, 3001, dtype=torch.bool), count, torch.tensor(1.0, dtype=expected))
    assert value.dtype == expected
    assert value.ndim == 0
    exact = reduction(ones.double(), torch.ones(1, 3001, dtype=torch.bool), count.double(), torch.tensor(1.0).double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)


def test_token_mean_divides_by_the_tokens_of_the_whole_step() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert TokenMean()(losses, mask, torch.tensor(10.0), torch.tensor(2.0)).item() == pytest.approx(2.1)


def test_the_sequence_mean_counts_every_trajectory_once() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [64.0, 64.0, 64.0]])
    mask = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    value = SequenceMean()(losses, mask, torch.tensor(3.0), torch.tensor(4.0))
    assert value.item() == pytest.approx((2.5 + 16.0) / 4)


def test_the_trajectory_sum_divides_by_trajectories_only() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert TrajectorySum()(losses, mask, torch.tensor(3.0), torch.tensor(4.0)).item() == pytest.approx(21.0 / 4)
