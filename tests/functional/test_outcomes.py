from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd import functional
from lightning_opd.functional.outcomes import GRPO, RLOO, DrGRPO, OutcomeAdvantage
from tests.implementations import implementations

every_outcome = pytest.mark.parametrize("outcome", implementations(OutcomeAdvantage, functional))
GROUPS = torch.tensor([5, 2, 5, 9, 2, 5, 9])


@every_outcome
def test_equal_rewards_give_zero(outcome: OutcomeAdvantage) -> None:
    assert outcome(torch.full((7,), 0.3), GROUPS).abs().max() < 1e-6


@every_outcome
def test_advantages_add_up_to_zero_in_every_group(outcome: OutcomeAdvantage) -> None:
    advantages = outcome(torch.randn(7, dtype=torch.float64), GROUPS)
    for group in GROUPS.unique():
        assert advantages[group == GROUPS].sum().abs() < 1e-9


@every_outcome
def test_groups_do_not_see_each_other(outcome: OutcomeAdvantage) -> None:
    rewards = torch.randn(7, dtype=torch.float64)
    advantages = outcome(rewards, GROUPS)
    for group in GROUPS.unique():
        rows = group == GROUPS
        torch.testing.assert_close(outcome(rewards[rows], GROUPS[rows]), advantages[rows])


@every_outcome
def test_a_better_sibling_never_gets_less(outcome: OutcomeAdvantage) -> None:
    rewards = torch.randn(7, dtype=torch.float64)
    advantages = outcome(rewards, GROUPS)
    for group in GROUPS.unique():
        rows = group == GROUPS
        assert torch.equal(advantages[rows].argsort(), rewards[rows].argsort())


@every_outcome
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_outcomes_are_compared_in_at_least_float32(
    outcome: OutcomeAdvantage, dtype: torch.dtype, expected: torch.dtype
) -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0], dtype=dtype)
    advantages = outcome(rewards, torch.zeros(3, dtype=torch.long))
    assert advantages.dtype == expected
    torch.testing.assert_close(advantages, outcome(rewards.to(expected), torch.zeros(3, dtype=torch.long)))


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), min_size=1, max_size=6))
def test_leave_one_out_equals_brute_force(rows: list[tuple[int, float]]) -> None:
    rows = rows + rows[::-1]  # no group of one
    rewards = torch.tensor([reward for _, reward in rows], dtype=torch.float64)
    advantages = RLOO()(rewards, torch.tensor([group for group, _ in rows]))
    for i, (group, reward) in enumerate(rows):
        others = [r for j, (g, r) in enumerate(rows) if g == group and j != i]
        assert advantages[i].item() == pytest.approx(reward - sum(others) / len(others), abs=1e-9)


@every_outcome
def test_a_group_of_one_is_refused_and_the_cure_named(outcome: OutcomeAdvantage) -> None:
    with pytest.raises(ValueError, match=r"at least 2 samples per prompt.*group of 1.*samples_per_prompt"):
        outcome(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1]))


@every_outcome
@given(st.floats(-5, 5), st.integers(2, 9))
def test_a_group_that_agrees_gets_exactly_nothing(outcome: OutcomeAdvantage, reward: float, size: int) -> None:
    assert not outcome(torch.full((size,), reward), torch.zeros(size, dtype=torch.long)).any()


def test_the_group_mean_and_its_normalised_form_equal_their_formulas() -> None:
    rewards, groups = torch.randn(9, dtype=torch.float64), torch.tensor([0, 1, 0, 2, 1, 0, 2, 1, 0])
    mean, normalised, loo = (f(rewards, groups) for f in (DrGRPO(), GRPO(eps=0.01), RLOO()))
    for group in range(3):
        rows = groups == group
        centred = rewards[rows] - rewards[rows].mean()
        torch.testing.assert_close(mean[rows], centred)
        torch.testing.assert_close(normalised[rows], centred / (rewards[rows].std() + 0.01))
        torch.testing.assert_close(loo[rows] * (rows.sum() - 1) / rows.sum(), centred)


def test_normalising_erases_the_scale_of_the_reward() -> None:
    rewards, groups = torch.randn(6, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 1])
    torch.testing.assert_close(GRPO(eps=0.0)(rewards, groups), GRPO(eps=0.0)(1000 * rewards + 7, groups))
