from __future__ import annotations

import pytest
import torch

from lightning_opd import functional
from lightning_opd.functional.policy_losses import PolicyLoss, Reinforce
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
