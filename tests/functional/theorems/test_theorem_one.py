"""Theorem 1 by exact enumeration: the gradient of each advantage, with baselines and transforms."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lightning_opd.functional.advantages import AdvantageEstimator, FullTrajectory, Immediate, KLToGo, LogRatioToGo
from lightning_opd.functional.baselines import BatchMean, LeaveOneOut, StateKL
from lightning_opd.functional.divergences import ReverseKL
from lightning_opd.functional.log_ratio_transforms import (
    BoundedDifference,
    Clip,
    Extrapolation,
    LogRatioTransform,
    OneSidedTrustRegion,
)
from tests.functional.enumeration import World, make_world

EXACT = [FullTrajectory(), LogRatioToGo(), KLToGo()]
exact_estimators = pytest.mark.parametrize("estimator", EXACT, ids=lambda e: type(e).__name__)
every_kind = pytest.mark.parametrize("estimator", [*EXACT, Immediate()], ids=lambda e: type(e).__name__)
TRANSFORMS: list[tuple[LogRatioTransform, ...]] = [
    (),
    (Clip(0.5),),
    (Clip(1.0),),
    (BoundedDifference(0.5),),
    (BoundedDifference(2.0), Clip(0.1)),
    (Extrapolation(1.5),),
    (Extrapolation(2.0), OneSidedTrustRegion(0.3, 0.3)),
    (Extrapolation(0.5), Clip(1.0)),
]
every_transform = pytest.mark.parametrize("transforms", TRANSFORMS, ids=lambda s: "+".join(type(x).__name__ for x in s))


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(vocab=4, horizon=3)


@pytest.fixture(scope="module")
def small_world() -> World:
    """Small enough for all pairs of responses."""
    return make_world(vocab=3, horizon=3, seed=1)


def advantages(
    world: World,
    estimator: AdvantageEstimator,
    transforms: Sequence[LogRatioTransform] = (),
    values: Tensor | None = None,
) -> Tensor:
    log_ratio, kl = world.transformed(transforms)
    return estimator(world.of_tokens(log_ratio), world.response_mask, kl=world.of_states(kl), values=values)


def assert_equal_gradients(actual: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@exact_estimators
@pytest.mark.parametrize("seed", range(3))
def test_the_exact_estimators_have_the_gradient_of_the_sequence_kl(estimator: AdvantageEstimator, seed: int) -> None:
    world = make_world(seed=seed)
    exact = -world.gradient(world.sequence_kl())
    assert_equal_gradients(world.policy_gradient(advantages(world, estimator)), exact)


@exact_estimators
@every_transform
def test_the_exact_estimators_stay_exact_for_a_transformed_reward(
    estimator: AdvantageEstimator, transforms: Sequence[LogRatioTransform], world: World
) -> None:
    rewards = world.of_tokens(world.transformed(transforms)[0]).sum(-1)
    exact = world.gradient((world.logprobs.sum(-1).exp() * rewards).sum())  # E_y Σ_t r_t with r held fixed
    assert_equal_gradients(world.policy_gradient(advantages(world, estimator, transforms)), exact)


@every_transform
def test_immediate_has_the_gradient_at_the_visited_states(
    transforms: Sequence[LogRatioTransform], world: World
) -> None:
    log_ratio, _ = world.transformed(transforms)
    visits = world.probability[:, None]  # held fixed
    at_states = (torch.softmax(world.student, -1) * log_ratio).sum(-1)
    exact = world.gradient((visits * world.of_states(at_states)).sum())
    assert_equal_gradients(world.policy_gradient(advantages(world, Immediate(), transforms)), exact)


def test_immediate_has_the_gradient_of_the_full_vocabulary_reverse_kl(world: World) -> None:
    kl = world.of_states(ReverseKL()(world.student, world.teacher))
    exact = -world.gradient((world.probability[:, None] * kl).sum())
    assert_equal_gradients(world.policy_gradient(advantages(world, Immediate())), exact)


@every_kind
@every_transform
def test_a_wrong_value_leaves_the_expected_gradient(
    estimator: AdvantageEstimator, transforms: Sequence[LogRatioTransform], world: World
) -> None:
    wrong = world.of_states(5 * torch.randn(len(world.student), dtype=torch.float64))
    assert_equal_gradients(
        world.policy_gradient(advantages(world, estimator, transforms, wrong)),
        world.policy_gradient(advantages(world, estimator, transforms)),
    )


@every_kind
@every_transform
def test_the_kl_at_the_state_is_a_baseline(
    estimator: AdvantageEstimator, transforms: Sequence[LogRatioTransform], world: World
) -> None:
    kl = world.of_states(world.transformed(transforms)[1])
    values = StateKL()(kl, world.response_mask, torch.arange(len(kl)), kl=kl)
    assert_equal_gradients(
        world.policy_gradient(advantages(world, estimator, transforms, values)),
        world.policy_gradient(advantages(world, estimator, transforms)),
    )


@every_kind
@pytest.mark.parametrize("transforms", TRANSFORMS[:2], ids=["plain", "clipped"])
def test_leave_one_out_leaves_the_expected_gradient(
    estimator: AdvantageEstimator, transforms: Sequence[LogRatioTransform], small_world: World
) -> None:
    returns, pairs = advantages(small_world, estimator, transforms), all_pairs(small_world)
    rows = pairs.flatten()
    values = LeaveOneOut()(
        returns[rows],
        small_world.response_mask[rows],
        torch.arange(len(pairs)).repeat_interleave(2),
        is_constant_in_time=estimator.is_constant_in_time,
    ).reshape(len(pairs), 2, -1)
    assert values.abs().max() > 0.1
    assert_baseline_is_harmless(small_world, estimator, transforms, pairs, values)


@every_kind
@pytest.mark.parametrize("transforms", TRANSFORMS[:2], ids=["plain", "clipped"])
def test_the_batch_mean_of_other_rows_leaves_the_expected_gradient(
    estimator: AdvantageEstimator, transforms: Sequence[LogRatioTransform], small_world: World
) -> None:
    returns, pairs = advantages(small_world, estimator, transforms), all_pairs(small_world)
    rollout_batches = [(returns[pair], small_world.response_mask[pair], torch.arange(2)) for pair in pairs]
    values = torch.stack([BatchMean()(*rollouts) for rollouts in rollout_batches])
    assert values.abs().max() > 0.1
    assert_baseline_is_harmless(small_world, estimator, transforms, pairs, values)


def test_the_mean_of_the_own_group_would_not_be_a_baseline(small_world: World) -> None:
    returns, pairs = advantages(small_world, LogRatioToGo()), all_pairs(small_world)
    wrong = returns[pairs].mean(1, keepdim=True).expand(-1, 2, -1)
    with pytest.raises(AssertionError):
        assert_baseline_is_harmless(small_world, LogRatioToGo(), (), pairs, wrong)


def all_pairs(world: World) -> Tensor:
    count = len(world.token_ids)
    return torch.cartesian_prod(torch.arange(count), torch.arange(count))


def assert_baseline_is_harmless(
    world: World, estimator: AdvantageEstimator, transforms: Sequence[LogRatioTransform], pairs: Tensor, values: Tensor
) -> None:
    """Compare, over all pairs of independent siblings, the mean of Σ_t b_t ∇log π(a_t|s_t) with 0."""
    weights = world.probability[pairs].prod(-1)[:, None, None]
    logprobs = world.logprobs[pairs]
    mask, returns = world.response_mask[pairs], advantages(world, estimator, transforms)[pairs]
    with_baseline = world.gradient((weights * torch.where(mask, (returns - values) * logprobs, 0.0)).sum() / 2)
    assert_equal_gradients(with_baseline, world.policy_gradient(advantages(world, estimator, transforms)))


def test_kl_to_go_with_the_plain_kl_is_wrong_for_a_clipped_reward(world: World) -> None:
    clipped, right = world.transformed([Clip(1.0)])
    _, plain = world.transformed([])
    rewards = world.of_tokens(clipped)
    with_right, with_plain = (
        world.policy_gradient(KLToGo()(rewards, world.response_mask, kl=world.of_states(kl))) for kl in (right, plain)
    )
    assert (with_plain - with_right).norm() > 0.1 * with_right.norm()


def test_k1_as_a_loss_has_no_gradient(world: World) -> None:
    log_ratio = world.logprobs - world.of_tokens(torch.log_softmax(world.teacher, -1))
    gradient = world.gradient((world.probability[:, None] * log_ratio).sum())  # differentiated, on sampled tokens
    assert gradient.abs().max() < 1e-12


def test_k2_as_a_loss_is_immediate(world: World) -> None:
    log_ratio = world.logprobs - world.of_tokens(torch.log_softmax(world.teacher, -1))
    gradient = world.gradient((world.probability[:, None] * log_ratio.square() / 2).sum())
    assert_equal_gradients(-gradient, world.policy_gradient(advantages(world, Immediate())))


def test_k3_as_a_loss_is_the_forward_kl(world: World) -> None:
    log_ratio = world.of_tokens(torch.log_softmax(world.teacher, -1)) - world.logprobs
    losses = torch.where(world.response_mask, log_ratio.exp() - 1 - log_ratio, 0.0)
    teacher, student = torch.softmax(world.teacher, -1), torch.log_softmax(world.student, -1)
    forward_kl = world.of_states((teacher * (teacher.log() - student)).sum(-1))
    expected = world.gradient((world.probability[:, None] * forward_kl).sum())
    assert_equal_gradients(world.gradient((world.probability[:, None] * losses).sum()), expected)


def test_a_kl_value_as_the_advantage_of_the_sampled_token_has_no_gradient(world: World) -> None:
    kl = world.of_states(world.transformed([])[1])
    assert world.policy_gradient(-kl).abs().max() < 1e-12


@every_kind
def test_no_estimator_hands_the_kl_at_the_state_to_its_own_token(estimator: AdvantageEstimator, world: World) -> None:
    nothing = torch.zeros_like(world.response_mask, dtype=torch.float64)
    last_mask = world.response_mask & (world.response_mask.cumsum(-1) == world.response_mask.sum(-1, keepdim=True))
    assert not estimator(nothing, world.response_mask, kl=nothing + 1)[last_mask].any()
