from __future__ import annotations

import math

import pytest
import torch

from lightning_opd import functional
from lightning_opd.functional.policy_losses import PolicyLoss, PPOClip, Reinforce, TruncatedImportance
from tests.implementations import implementations

every_loss = pytest.mark.parametrize("policy_loss", implementations(PolicyLoss, functional))


@every_loss
def test_on_policy_every_token_is_pushed_by_its_advantage(policy_loss: PolicyLoss) -> None:
    logprobs = -torch.rand(2, 4, dtype=torch.float64)
    advantages = torch.randn(2, 4, dtype=torch.float64)
    old_logprobs = logprobs.clone()
    logprobs.requires_grad_()
    (gradient,) = torch.autograd.grad(policy_loss(logprobs, old_logprobs, advantages).sum(), logprobs)
    torch.testing.assert_close(gradient, -advantages, rtol=0, atol=1e-12)


@every_loss
def test_advantages_and_old_logprobs_receive_no_gradient(policy_loss: PolicyLoss) -> None:
    logprobs, old_logprobs, advantages = (torch.randn(2, 3, requires_grad=True) for _ in range(3))
    policy_loss(logprobs, old_logprobs, advantages).sum().backward()
    assert logprobs.grad is not None
    assert old_logprobs.grad is None
    assert advantages.grad is None


@every_loss
def test_zero_advantage_means_zero_gradient(policy_loss: PolicyLoss) -> None:
    logprobs = torch.randn(2, 3, requires_grad=True)
    loss = policy_loss(logprobs, torch.randn(2, 3), torch.zeros(2, 3)).sum()
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert not gradient.any()


@every_loss
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_losses_are_computed_in_at_least_float32(
    policy_loss: PolicyLoss, dtype: torch.dtype, expected: torch.dtype
) -> None:
    logprobs = (-torch.rand(2, 3)).to(dtype)
    assert policy_loss(logprobs, logprobs, torch.randn(2, 3).to(dtype)).dtype == expected


@every_loss
def test_tokens_do_not_see_each_other(policy_loss: PolicyLoss) -> None:
    logprobs, old_logprobs, advantages = (torch.randn(1, 4) for _ in range(3))
    whole = policy_loss(logprobs, old_logprobs, advantages)
    assert whole.shape == (1, 4)
    single = policy_loss(logprobs[:, 2:3], old_logprobs[:, 2:3], advantages[:, 2:3])
    torch.testing.assert_close(single, whole[:, 2:3])


def test_reinforce_is_minus_advantage_times_logprob() -> None:
    loss = Reinforce()(torch.tensor([[-1.0, -2.0]]), torch.tensor([[9.0, 9.0]]), torch.tensor([[3.0, -0.5]]))
    assert loss.tolist() == [[3.0, -1.0]]


def test_reinforce_of_an_impossible_masked_token_has_a_finite_gradient() -> None:
    logits = torch.tensor([[0.0, -torch.inf]], requires_grad=True)
    logprobs = torch.log_softmax(logits, -1)
    losses = Reinforce()(logprobs, logprobs, torch.tensor([[1.0, 0.0]]))
    (gradient,) = torch.autograd.grad(torch.where(torch.tensor([[True, False]]), losses, 0.0).sum(), logits)
    assert torch.isfinite(gradient).all()


@every_loss
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize(("new", "old"), [(-torch.inf, -1.0), (-1.0, -torch.inf), (-torch.inf, -torch.inf)])
def test_impossible_tokens_leave_the_gradient_of_the_others_finite(
    policy_loss: PolicyLoss, new: float, old: float, advantage: float
) -> None:
    logits = torch.tensor([[0.0, 0.5 if new > -torch.inf else -torch.inf, 0.3]], requires_grad=True)
    logprobs = torch.log_softmax(logits, -1)[:, :2]
    losses = policy_loss(logprobs, torch.tensor([[-1.0, old]]), torch.tensor([[1.0, advantage]]))
    (gradient,) = torch.autograd.grad(torch.where(losses.isfinite(), losses, 0.0).sum(), logits)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 0] != 0


@every_loss
def test_the_flag_tells_whether_the_old_policy_counts(policy_loss: PolicyLoss) -> None:
    logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    loss = policy_loss(logprobs, torch.tensor([[-1.1, -0.9]]), torch.tensor([[1.0, 1.0]]))
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert (gradient[0, 0] != gradient[0, 1]).item() == policy_loss.is_off_policy


def test_importance_sampling_has_the_gradient_of_the_current_policy_from_old_tokens() -> None:
    new = torch.randn(5, dtype=torch.float64, requires_grad=True)
    old, advantages = torch.randn(5, dtype=torch.float64).log_softmax(-1), torch.randn(5, dtype=torch.float64)
    logprobs = new.log_softmax(-1)
    losses = TruncatedImportance(1e6)(logprobs[None], old[None], advantages[None])[0]
    (gradient,) = torch.autograd.grad((old.exp() * losses).sum(), new, retain_graph=True)
    (exact,) = torch.autograd.grad(-(logprobs.exp() * advantages).sum(), new)
    torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, 0.5), (3.0, 3.0), (7.0, 5.0)])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_a_truncated_token_keeps_a_bounded_push(ratio: float, expected: float, advantage: float) -> None:
    logprobs = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    loss = TruncatedImportance(5.0)(logprobs, logprobs.detach() - math.log(ratio), torch.tensor([[advantage]]).double())
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert gradient.item() == pytest.approx(-expected * advantage)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.6, 0.0),  # moved far enough the right way
        (0.5, 2.0, -1.0, -1.0),  # moved the wrong way: pulled back
        (0.5, -2.0, 1.8, 0.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_ppo_clip_is_the_pessimistic_bound(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    logprobs = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    old_logprobs = logprobs.detach() - math.log(ratio)
    value = PPOClip(clip_low=0.1, clip_high=0.3)(logprobs, old_logprobs, torch.tensor([[advantage]]).double())
    assert value.item() == pytest.approx(loss)
    assert torch.autograd.grad(value.sum(), logprobs)[0].item() == pytest.approx(gradient)


def test_no_policy_loss_differentiates_the_log_ratio_itself() -> None:
    # k1 as a loss: were the advantage differentiated, its gradient would cancel that of the log-prob
    logprobs = torch.tensor([[-1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    log_ratio = torch.tensor([[-2.0, -1.0]], dtype=torch.float64) - logprobs
    for policy_loss in (Reinforce(), TruncatedImportance(), PPOClip()):
        loss = policy_loss(logprobs, logprobs.detach(), log_ratio).sum()
        (gradient,) = torch.autograd.grad(loss, logprobs, retain_graph=True)
        torch.testing.assert_close(gradient, -log_ratio.detach())


def test_settings_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`max_ratio` must be at least 1, got 0\.5"):
        TruncatedImportance(0.5)
    for clip_low, clip_high in ((0.0, 0.2), (1.5, 0.2), (0.2, 0.0)):
        with pytest.raises(ValueError, match=f"got {clip_low} and {clip_high}"):
            PPOClip(clip_low, clip_high)
