from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_opd import functional
from lightning_opd.functional.baselines import Baseline, BatchMean, LeaveOneOut, StateKL
from tests.implementations import implementations

every_baseline = pytest.mark.parametrize("baseline", implementations(Baseline, functional))


def rollouts(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0], [1, 0, 1, 0, 0]], dtype=torch.bool)
    return {
        "returns": torch.randn(4, 5).to(dtype),
        "response_mask": mask,
        "group_ids": torch.tensor([3, 8, 3, 8]),
        "kl": torch.rand(4, 5).to(dtype),
    }


@every_baseline
@pytest.mark.parametrize("garbage", [torch.inf, -torch.inf, torch.nan])
def test_baselines_are_detached_and_see_the_response_only(baseline: Baseline, garbage: float) -> None:
    rows = rollouts()
    expected = baseline(**rows)
    assert not expected[~rows["response_mask"]].any()
    spoilt = rows | {
        n: rows[n].masked_fill(~rows["response_mask"], garbage).requires_grad_() for n in ("returns", "kl")
    }
    actual = baseline(**spoilt)
    assert not actual.requires_grad
    assert torch.equal(actual, expected)


@every_baseline
def test_a_tokens_own_return_never_enters_its_baseline(baseline: Baseline) -> None:
    rows = rollouts()
    for row in range(4):
        changed = rows["returns"].clone()
        changed[row] += torch.randn(5, dtype=torch.float64)
        torch.testing.assert_close(baseline(**rows | {"returns": changed})[row], baseline(**rows)[row])


@every_baseline
def test_the_flags_tell_what_a_baseline_reads(baseline: Baseline) -> None:
    rows = rollouts()
    other = rows["returns"].clone()
    other[2] += 1
    assert torch.equal(baseline(**rows | {"returns": other}), baseline(**rows)) != baseline.needs_other_rows
    if baseline.needs_kl:
        with pytest.raises(ValueError, match=r"needs `kl`.*got None"):
            baseline(**rows | {"kl": None})
    else:
        assert torch.equal(baseline(**rows | {"kl": None}), baseline(**rows))


@every_baseline
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_baselines_are_computed_in_at_least_float32(
    baseline: Baseline, dtype: torch.dtype, expected: torch.dtype
) -> None:
    assert baseline(**rollouts(dtype)).dtype == expected


@every_baseline
def test_a_rollout_batch_without_response_tokens_gives_zeros(baseline: Baseline) -> None:
    rows = rollouts()
    rows["response_mask"] = torch.zeros_like(rows["response_mask"])
    assert not baseline(**rows).any()


@pytest.mark.parametrize("is_constant", [False, True])
def test_leave_one_out_compares_equal_ordinals_and_knows_what_counts_past_an_end(is_constant: bool) -> None:
    returns = torch.tensor([[0.0, 4.0, 9.0, 4.0, 4.0], [6.0, 6.0, 9.0, 9.0, 9.0], [9.0, 2.0, 9.0, 2.0, 9.0]])
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 0]], dtype=torch.bool)
    baseline = LeaveOneOut()(returns, mask, torch.tensor([5, 5, 5]), is_constant_in_time=is_constant)
    past = 4.0 if is_constant else 0.0  # (6 + 2) / 2
    assert baseline.tolist() == [[0.0, 4.0, 0.0, 4.0, past], [3.0, 3.0, 0.0, 0.0, 0.0], [0.0, 5.0, 0.0, 5.0, 0.0]]


def test_leave_one_out_refuses_a_group_of_one_and_names_the_cure() -> None:
    rows = rollouts() | {"group_ids": torch.tensor([0, 0, 1, 0])}
    with pytest.raises(ValueError, match=r"at least 2 samples per prompt.*group of 1.*samples_per_prompt"):
        LeaveOneOut()(**rows)


def test_the_batch_mean_is_that_of_the_other_rows_tokens() -> None:
    rows = rollouts()
    baseline = BatchMean()(**rows)
    for row in range(4):
        others = torch.arange(4) != row
        expected = rows["returns"][others][rows["response_mask"][others]].mean()
        torch.testing.assert_close(baseline[row][rows["response_mask"][row]].unique(), expected[None])


def test_the_batch_mean_does_not_depend_on_how_rows_lie_on_ranks() -> None:
    rows = rollouts()
    whole = BatchMean()(**rows)
    shards = [{n: x[part] for n, x in rows.items()} for part in torch.arange(4).split([1, 3])]
    sent: list[Tensor] = []

    def send(own: Tensor) -> Tensor:
        sent.append(own)
        return own + 1

    for shard in shards:  # what every rank puts in
        BatchMean()(**shard, sum_over_ranks=send)
    parts = [BatchMean()(**shard, sum_over_ranks=lambda _: sent[0] + sent[1]) for shard in shards]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_the_batch_mean_refuses_a_rollout_batch_of_one_row() -> None:
    with pytest.raises(ValueError, match=r"at least 2 rows per rollout batch.*got 1"):
        BatchMean()(**{name: x[:1] for name, x in rollouts().items()})


def test_the_state_kl_is_minus_the_kl_so_that_the_immediate_advantage_has_mean_zero() -> None:
    rows = rollouts()
    torch.testing.assert_close(StateKL()(**rows), torch.where(rows["response_mask"], -rows["kl"], 0.0))
