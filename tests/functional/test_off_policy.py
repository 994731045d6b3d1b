from __future__ import annotations

import pytest
import torch

from lightning_opd import functional
from lightning_opd.functional.off_policy import MaskedImportance, OffPolicyWeight, TruncatedImportance
from tests.implementations import implementations

every_weight = pytest.mark.parametrize("weight", implementations(OffPolicyWeight, functional))


@every_weight
def test_on_policy_tokens_weigh_one(weight: OffPolicyWeight) -> None:
    logprobs = -torch.rand(2, 4)
    assert torch.equal(weight(logprobs, logprobs.clone()), torch.ones(2, 4))


@every_weight
def test_weights_are_detached_elementwise_and_never_negative(weight: OffPolicyWeight) -> None:
    old, rollout = (-5 * torch.rand(2, 3, 4)).requires_grad_().unbind(0)
    weights = weight(old, rollout)
    assert not weights.requires_grad
    assert weights.min() >= 0
    torch.testing.assert_close(weight(old[1:, 2:], rollout[1:, 2:]), weights[1:, 2:])


@every_weight
@pytest.mark.parametrize(("old", "rollout"), [(-torch.inf, -1.0), (-1.0, -torch.inf), (-torch.inf, -torch.inf)])
def test_impossible_tokens_have_finite_weights(weight: OffPolicyWeight, old: float, rollout: float) -> None:
    assert torch.isfinite(weight(torch.tensor([[old]]), torch.tensor([[rollout]]))).all()


@every_weight
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_weights_are_computed_in_at_least_float32(
    weight: OffPolicyWeight, dtype: torch.dtype, expected: torch.dtype
) -> None:
    assert weight((-torch.rand(2, 3)).to(dtype), (-torch.rand(2, 3)).to(dtype)).dtype == expected


@every_weight
def test_nearby_the_weighted_mean_is_that_of_the_training_policy(weight: OffPolicyWeight) -> None:
    rollout = torch.randn(6, dtype=torch.float64).log_softmax(-1)
    old = (rollout + 0.3 * torch.randn(6, dtype=torch.float64)).log_softmax(-1)
    value = torch.randn(6, dtype=torch.float64)
    reweighted = (rollout.exp() * weight(old[None], rollout[None])[0] * value).sum()
    torch.testing.assert_close(reweighted, (old.exp() * value).sum(), rtol=0, atol=1e-12)


def test_one_truncates_where_the_other_drops() -> None:
    ratios = torch.tensor([[0.05, 0.5, 2.0, 20.0]], dtype=torch.float64)
    zeros = torch.zeros_like(ratios)
    torch.testing.assert_close(
        TruncatedImportance(5.0)(ratios.log(), zeros), torch.tensor([[0.05, 0.5, 2.0, 5.0]]).double()
    )
    torch.testing.assert_close(
        MaskedImportance(0.1, 10.0)(ratios.log(), zeros), torch.tensor([[0, 0.5, 2.0, 0]]).double()
    )


def test_settings_that_touch_on_policy_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`max_weight` must be at least 1, got 0\.9"):
        TruncatedImportance(0.9)
    for low, high in ((1.1, 2.0), (0.5, 0.9), (-0.1, 2.0)):
        with pytest.raises(ValueError, match=f"got {low} and {high}"):
            MaskedImportance(low, high)
