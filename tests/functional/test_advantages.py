from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_opd import functional
from lightning_opd.functional.advantages import (
    AdvantageEstimator,
    FullTrajectory,
    Immediate,
    KLToGo,
    LogRatioToGo,
    to_go,
)
from lightning_opd.functional.baselines import BatchMean, LeaveOneOut, StateKL
from tests.implementations import implementations

BASELINES = [LeaveOneOut(), BatchMean(), StateKL()]
ESTIMATORS = implementations(
    AdvantageEstimator, functional, {"LogRatioToGo": [LogRatioToGo(d) for d in (1.0, 0.9, 0.0)]}
)
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def random_rows(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0]], dtype=torch.bool)
    return {
        "log_ratio": torch.randn(3, 5).to(dtype),
        "response_mask": mask,
        "kl": torch.rand(3, 5).to(dtype),
    }


@every_estimator
def test_advantages_are_detached_and_zero_outside_the_response(estimator: AdvantageEstimator) -> None:
    rows = random_rows()
    rows["log_ratio"].requires_grad_()
    advantages = estimator(**rows)
    assert advantages.shape == rows["log_ratio"].shape
    assert not advantages.requires_grad
    assert not advantages[~rows["response_mask"]].any()
    assert advantages[rows["response_mask"]].all()


@every_estimator
@pytest.mark.parametrize("garbage", [torch.inf, -torch.inf, torch.nan])
def test_what_lies_outside_the_response_changes_nothing(estimator: AdvantageEstimator, garbage: float) -> None:
    rows = random_rows()
    expected = estimator(**rows)
    outside = ~rows["response_mask"]
    spoilt = rows | {name: rows[name].masked_fill(outside, garbage) for name in ("log_ratio", "kl")}
    assert torch.equal(estimator(**spoilt), expected)


@every_estimator
def test_padding_on_either_side_changes_nothing(estimator: AdvantageEstimator) -> None:
    rows = random_rows()
    expected = estimator(**rows)
    padded = {name: torch.nn.functional.pad(x, (2, 3)) if x.ndim == 2 else x for name, x in rows.items()}
    assert torch.equal(estimator(**padded)[:, 2:-3], expected)


@every_estimator
def test_rows_do_not_see_each_other(estimator: AdvantageEstimator) -> None:
    rows = random_rows()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(estimator(**{name: x[order] for name, x in rows.items()}), estimator(**rows)[order])
    alone = estimator(**{name: x[1:2] for name, x in rows.items()})
    torch.testing.assert_close(alone, estimator(**rows)[1:2])


@every_estimator
def test_a_teacher_equal_to_the_student_gives_zero(estimator: AdvantageEstimator) -> None:
    rows = random_rows()
    rows |= {"log_ratio": torch.zeros_like(rows["log_ratio"]), "kl": torch.zeros_like(rows["kl"])}
    assert not estimator(**rows).any()


@every_estimator
def test_values_are_subtracted_inside_the_response(estimator: AdvantageEstimator) -> None:
    rows = random_rows()
    values = torch.randn(3, 5, dtype=torch.float64)
    expected = torch.where(rows["response_mask"], estimator(**rows) - values, 0.0)
    torch.testing.assert_close(estimator(**rows, values=values), expected)


@every_estimator
def test_an_all_masked_batch_gives_zeros(estimator: AdvantageEstimator) -> None:
    rows = random_rows()
    rows["response_mask"] = torch.zeros_like(rows["response_mask"])
    assert not estimator(**rows).any()


@every_estimator
def test_a_response_of_one_token_gets_its_own_log_ratio(estimator: AdvantageEstimator) -> None:
    mask = torch.tensor([[False, True, False]])
    advantages = estimator(torch.tensor([[5.0, -2.0, 7.0]]), mask, kl=torch.ones(1, 3))
    assert advantages.tolist() == [[0.0, -2.0, 0.0]]


@every_estimator
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_advantages_are_computed_in_at_least_float32(
    estimator: AdvantageEstimator, dtype: torch.dtype, expected: torch.dtype
) -> None:
    assert estimator(**random_rows(dtype)).dtype == expected


def test_immediate_is_the_log_ratio_itself() -> None:
    log_ratio = torch.tensor([[3.0, -torch.inf, 0.5, -1.0]])
    mask = torch.tensor([[True, False, True, True]])
    assert Immediate()(log_ratio, mask).tolist() == [[3.0, 0.0, 0.5, -1.0]]


@every_estimator
def test_the_flags_tell_what_an_estimator_does(estimator: AdvantageEstimator) -> None:
    rows = random_rows()
    kinds = type(estimator)
    changed = rows | {name: rows[name] + (torch.arange(5) == 3) for name in ("log_ratio", "kl")}
    sees_later = not torch.equal(estimator(**changed)[:, :3], estimator(**rows)[:, :3])
    assert sees_later <= kinds.looks_ahead
    if estimator != LogRatioToGo(0.0):
        assert sees_later == kinds.looks_ahead
    per_row = [row[mask].unique() for row, mask in zip(estimator(**rows), rows["response_mask"], strict=True)]
    assert kinds.is_constant_in_time == all(len(values) == 1 for values in per_row)
    if kinds.needs_kl:
        with pytest.raises(ValueError, match=r"needs `kl`.*got None.*LogRatioToGo"):
            estimator(**rows | {"kl": None})
    else:
        assert torch.equal(estimator(**rows | {"kl": None}), estimator(**rows))


@every_estimator
@given(seed=st.integers(0, 2**16), cut=st.integers(1, 3))
def test_neither_padding_nor_order_nor_micro_batches_change_an_advantage(
    estimator: AdvantageEstimator, seed: int, cut: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(4, 6, generator=generator) < 0.6
    log_ratio, kl = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    whole = {"log_ratio": log_ratio, "kl": kl, "response_mask": mask}
    groups = torch.tensor([0, 1, 0, 1])

    def with_baselines(rows: dict[str, Any], group_ids: Tensor) -> list[Tensor]:
        returns = estimator(**rows)
        kinds = {"kl": rows["kl"], "is_constant_in_time": estimator.is_constant_in_time}
        baselines = [b(returns, rows["response_mask"], group_ids, **kinds) for b in BASELINES]
        return [returns, *(returns - b for b in baselines)]

    expected = with_baselines(whole, groups)
    order = torch.randperm(4, generator=generator)
    padded = {name: torch.nn.functional.pad(x, (1, 2)) if x.ndim == 2 else x for name, x in whole.items()}
    shuffled = {name: x[order] for name, x in whole.items()}
    for permuted, row in zip(with_baselines(shuffled, groups[order]), expected, strict=True):
        torch.testing.assert_close(permuted, row[order], rtol=0, atol=1e-12)
    for wide, row in zip(with_baselines(padded, groups), expected, strict=True):
        torch.testing.assert_close(wide[:, 1:-2], row, rtol=0, atol=1e-12)
    for baseline, row in zip(BASELINES, expected[1:], strict=True):  # on the rollout batch, then cut
        values = baseline(expected[0], mask, groups, kl=kl, is_constant_in_time=estimator.is_constant_in_time)
        parts = [
            estimator(**{name: x[part] for name, x in whole.items()}, values=values[part])
            for part in torch.arange(4).split(cut)
        ]
        torch.testing.assert_close(torch.cat(parts), row, rtol=0, atol=1e-12)


@pytest.mark.parametrize("discount", [0.0, 0.3, 0.99, 1.0])
def test_to_go_adds_what_follows_and_counts_response_tokens_only(discount: float) -> None:
    x = torch.randn(2, 37, dtype=torch.float64)
    mask = torch.rand(2, 37) < 0.7
    for row in range(2):
        kept = x[row][mask[row]].tolist()
        expected = [sum(discount ** (j - i) * kept[j] for j in range(i, len(kept))) for i in range(len(kept))]
        assert to_go(x, mask, discount)[row][mask[row]].tolist() == pytest.approx(expected, abs=1e-12)


def test_a_discount_of_nothing_is_immediate_and_of_one_is_the_sum() -> None:
    rows = random_rows()
    torch.testing.assert_close(LogRatioToGo(0.0)(**rows), Immediate()(**rows))
    first = rows["response_mask"] & (rows["response_mask"].cumsum(-1) == 1)
    torch.testing.assert_close(LogRatioToGo()(**rows)[first], FullTrajectory()(**rows)[first])


@pytest.mark.parametrize("discount", [-0.1, 1.1])
def test_a_discount_outside_zero_and_one_is_refused(discount: float) -> None:
    with pytest.raises(ValueError, match=rf"`discount` must lie in \[0, 1\], got {discount}"):
        LogRatioToGo(discount)


def test_kl_to_go_takes_the_future_kl_and_not_its_own() -> None:
    log_ratio, kl = torch.tensor([[9.0, 1.0, 2.0, 3.0]]), torch.tensor([[9.0, 10.0, 20.0, 40.0]])
    mask = torch.tensor([[False, True, True, True]])
    assert KLToGo()(log_ratio, mask, kl=kl).tolist() == [[0.0, -59.0, -38.0, 3.0]]
