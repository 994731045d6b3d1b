"""Where exact ascent ends: at the teacher (Theorem 3), beside it where it must, and where outcomes tilt it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_opd.functional.advantages import AdvantageEstimator, Immediate, KLToGo, LogRatioToGo
from lightning_opd.functional.log_ratio_transforms import (
    BoundedDifference,
    Clip,
    Extrapolation,
    LogRatioTransform,
    OneSidedTrustRegion,
)
from tests.functional.enumeration import World, make_world


def per_cell(world: World, weights: Tensor) -> Tensor:
    """Add per-token weights up by the state and the token they belong to."""
    cells = (world.states * world.student.shape[-1] + world.token_ids)[world.response_mask]
    table = torch.zeros(world.student.numel(), dtype=torch.float64)
    return table.index_add(0, cells, weights[world.response_mask]).reshape(world.student.shape)


def mean_of(world: World, returns: Tensor) -> Tensor:
    """Return the student's expectation of a per-token number, conditional on state and token."""
    probability = world.probability[:, None].expand_as(returns)
    return per_cell(world, probability * returns) / per_cell(world, probability)


def ascend(world: World, advantages: Callable[[World], Tensor], steps: int, rate: float) -> World:
    """Follow the exact policy gradient, each logit's step divided by how often it is visited."""
    for _ in range(steps):
        visits = per_cell(world, world.probability[:, None].expand(world.response_mask.shape))
        step = rate * world.policy_gradient(advantages(world)) / visits
        world = dataclasses.replace(world, student=(world.student + step).detach().requires_grad_())
    return world


def exact_values(world: World) -> Tensor:
    """Return V(s_t): the student's expectation of the log-ratio-to-go at the state."""
    to_go = LogRatioToGo()(world.of_tokens(world.transformed([])[0]), world.response_mask)
    table = (torch.softmax(world.student, -1) * mean_of(world, to_go)).sum(-1).detach()
    return world.of_states(table)


def signal(
    estimator: AdvantageEstimator, *transforms: LogRatioTransform, has_values: bool = False
) -> Callable[[World], Tensor]:
    def advantages(world: World) -> Tensor:
        log_ratio, kl = world.transformed(transforms)
        values = exact_values(world) if has_values else None
        return estimator(world.of_tokens(log_ratio), world.response_mask, kl=world.of_states(kl), values=values)

    return advantages


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("advantages", "rate"),
    [
        (signal(Immediate()), 0.3),
        (signal(LogRatioToGo()), 0.3),
        (signal(KLToGo(), has_values=True), 0.3),
        (signal(Immediate(), Clip(0.5)), 0.3),
        (signal(Immediate(), BoundedDifference(1.0)), 4.0),
        (signal(Immediate(), Clip(0.5), OneSidedTrustRegion(0.1, 0.1)), 0.3),
    ],
    ids=["immediate", "to_go", "kl_to_go_with_values", "clipped", "bounded", "trust_region"],
)
def test_ascent_from_anywhere_ends_at_the_teacher(
    advantages: Callable[[World], Tensor], rate: float, seed: int
) -> None:
    start = make_world(seed=10 + seed)
    assert start.sequence_kl().item() > 0.5
    assert ascend(start, advantages, 100, rate).sequence_kl().item() < 1e-4


@pytest.mark.parametrize("scale", [1.5, 0.5])
def test_extrapolation_ends_at_the_tilted_teacher(scale: float) -> None:
    start = make_world(vocab=3, horizon=2, seed=4)
    end = ascend(start, signal(Immediate(), Extrapolation(scale)), 60, 0.3)
    expected = (scale * start.teacher.log_softmax(-1) + (1 - scale) * start.reference.log_softmax(-1)).softmax(-1)
    torch.testing.assert_close(end.student.softmax(-1).detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 5])
def test_the_trust_region_caps_extrapolation_at_its_bound_above_the_teacher(seed: int) -> None:
    scale, high = 1.5, 0.2
    start = make_world(vocab=3, horizon=2, seed=seed)
    teacher, reference = start.teacher.log_softmax(-1), start.reference.log_softmax(-1)
    low, top = torch.zeros(len(teacher), 1).double(), torch.full((len(teacher), 1), 5.0).double()
    for _ in range(60):  # bisect the k of each state
        k = (low + top) / 2
        capped = teacher + ((scale - 1) * (teacher - reference) - k).clamp(max=high)
        is_heavy = capped.exp().sum(-1, keepdim=True) > 1
        low, top = torch.where(is_heavy, k, low), torch.where(is_heavy, top, k)
    has_fixed_point = (capped.exp().sum(-1) - 1).abs() < 1e-9  # k ≥ 0
    assert has_fixed_point.any()
    assert (capped - teacher).max() > high - 1e-9
    end = ascend(start, signal(Immediate(), Extrapolation(scale), OneSidedTrustRegion(high, high)), 500, 0.02)
    actual, expected = end.student.softmax(-1).detach()[has_fixed_point], capped.exp()[has_fixed_point]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.01)  # a step: the ascent hovers at the bound


class Fork:
    """The first token chooses A or B, the teacher 50/50; after B the student stays c nats away from the teacher."""

    mask = torch.tensor([[True, True]] * 3)

    def __init__(self, miss: float) -> None:
        rare = (1 - math.sqrt(1 - math.exp(-2 * miss))) / 2  # KL((½, ½) ‖ (rare, 1 − rare)) = miss
        self.miss = miss
        self.after_b = torch.tensor([rare, 1 - rare], dtype=torch.float64).log() - math.log(0.5)

    def step(self, logit: Tensor, estimator: AdvantageEstimator, has_values: bool) -> Tensor:
        """Return the exact gradient in the logit of A."""
        logprobs = torch.nn.functional.logsigmoid(torch.stack([logit, -logit]))  # A, B
        a, b = logprobs.detach().exp()
        ratio_a, ratio_b = math.log(0.5) - logprobs.detach()
        zero = torch.zeros_like(a)
        log_ratio = torch.stack(
            [torch.stack([ratio_a, zero]), *(torch.stack([ratio_b, later]) for later in self.after_b)]
        )
        first_kl, second_kl = -(a * ratio_a + b * ratio_b), torch.tensor([0.0, self.miss, self.miss]).double()
        kl = torch.stack([first_kl.expand(3), second_kl], -1)
        values = torch.stack([(-first_kl - b * self.miss).expand(3), -second_kl], -1) if has_values else None
        advantages = estimator(log_ratio, self.mask, kl=kl, values=values)
        weights = torch.stack([a, b / 2, b / 2])
        objective = (weights * advantages[:, 0] * logprobs[torch.tensor([0, 1, 1])]).sum()
        return torch.autograd.grad(objective, logit)[0]


@pytest.mark.parametrize("miss", [0.5, 2.0])
@pytest.mark.parametrize(
    ("estimator", "has_values", "sees_ahead"),
    [
        (Immediate(), False, False),
        (LogRatioToGo(), False, True),
        (KLToGo(), False, True),
        (KLToGo(), True, True),
        (LogRatioToGo(0.5), False, None),
    ],
    ids=["immediate", "to_go", "kl_to_go", "kl_to_go_with_values", "discounted"],
)
def test_only_sums_over_the_future_avoid_the_fork_that_ends_badly(
    estimator: AdvantageEstimator, has_values: bool, sees_ahead: bool | None, miss: float
) -> None:
    fork, logit = Fork(miss), torch.tensor(-0.7, dtype=torch.float64)
    for _ in range(300):
        logit = (logit + 2 * fork.step(logit.requires_grad_(), estimator, has_values)).detach()
    weight = {False: 0.0, True: 1.0, None: 0.5}[sees_ahead]
    assert logit.sigmoid().item() == pytest.approx(1 / (1 + math.exp(-weight * miss)), abs=1e-6)


@pytest.mark.parametrize("coefficient", [0.5, 2.0])
def test_with_an_exact_estimator_outcomes_tilt_the_teacher_as_a_whole(coefficient: float) -> None:
    start = make_world(vocab=3, horizon=3, seed=7)
    rewards = torch.rand(len(start.token_ids), 1, dtype=torch.float64)
    distil = signal(LogRatioToGo())
    end = ascend(start, lambda world: distil(world) + coefficient * rewards, 100, 0.3)
    tilted = start.of_tokens(start.teacher.log_softmax(-1)).sum(-1).exp() * (coefficient * rewards[:, 0]).exp()
    torch.testing.assert_close(end.probability, tilted / tilted.sum(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("coefficient", [0.5, 2.0])
def test_with_immediate_outcomes_tilt_each_token_by_the_students_own_continuation(coefficient: float) -> None:
    start = make_world(vocab=3, horizon=3, seed=8)
    rewards = torch.rand(len(start.token_ids), 1, dtype=torch.float64)
    distil = signal(Immediate())
    end = ascend(start, lambda world: distil(world) + coefficient * rewards, 100, 0.3)
    continuation = mean_of(end, rewards.expand(end.response_mask.shape))
    expected = (end.teacher.log_softmax(-1) + coefficient * continuation).softmax(-1)
    torch.testing.assert_close(end.student.softmax(-1).detach(), expected, rtol=0, atol=1e-6)


def test_as_the_coefficient_vanishes_the_teacher_is_the_fixed_point_again() -> None:
    start = make_world(vocab=3, horizon=3, seed=9)
    rewards = torch.rand(len(start.token_ids), 1, dtype=torch.float64)
    for estimator in (Immediate(), LogRatioToGo()):
        distil = signal(estimator)

        def distance(coefficient: float, distil: Callable[[World], Tensor] = distil) -> float:
            end = ascend(start, lambda world: distil(world) + coefficient * rewards, 80, 0.3)
            return float(end.sequence_kl().detach())

        ends = [distance(coefficient) for coefficient in (1.0, 0.1, 0.0)]
        assert ends[0] > 10 * ends[1] > 10 * ends[2]
        assert ends[2] < 1e-9
