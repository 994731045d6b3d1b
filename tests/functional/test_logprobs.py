from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from lightning_opd.functional.logprobs import (
    MAX_CHUNK_ELEMENTS,
    linear_token_logprobs,
    linear_token_statistics,
    log_softmax,
    over_positions,
    promote,
    shift_right,
    token_logprobs,
)
from tests.precision import RESULT_DTYPES

DTYPES = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


def random_case(
    batch: int = 3, time: int = 5, vocab: int = 7, hidden: int = 4
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    states = torch.randn(batch, time, hidden, dtype=torch.float64)
    weight = torch.randn(vocab, hidden, dtype=torch.float64)
    bias = torch.randn(vocab, dtype=torch.float64)
    return states, weight, bias, torch.randint(vocab, (batch, time))


def test_token_logprobs_equal_a_hand_enumeration() -> None:
    logits = torch.randn(2, 4, 3, dtype=torch.float64)
    token_ids = torch.tensor([[0, 2, 1, 1], [2, 0, 0, 1]])
    actual = token_logprobs(logits, token_ids, temperature=0.7)
    for b in range(2):
        assert actual[b, 0] == 0.0
        for t in range(1, 4):
            scores = [math.exp(float(z) / 0.7) for z in logits[b, t - 1]]
            expected = math.log(scores[int(token_ids[b, t])] / sum(scores))
            assert actual[b, t].item() == pytest.approx(expected, abs=1e-12)


def test_token_logprobs_do_not_see_the_last_logits() -> None:
    logits = torch.randn(1, 3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(token_logprobs(logits, torch.tensor([[0, 1, 2]])).sum(), logits)
    assert gradient[:, :-1].abs().min() > 0
    assert not gradient[:, -1].any()


def test_token_logprobs_of_one_token_are_zero() -> None:
    assert token_logprobs(torch.randn(2, 1, 4), torch.zeros(2, 1, dtype=torch.long)).tolist() == [[0.0], [0.0]]


def test_token_logprobs_have_the_gradient_of_finite_differences() -> None:
    token_ids = torch.tensor([[1, 0, 2]])
    logits = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: token_logprobs(z, token_ids, 1.3), logits)


def test_a_banned_token_scores_minus_infinity_with_a_finite_gradient() -> None:
    logits = torch.zeros(1, 3, 3)
    logits[0, :, 2] = -torch.inf
    logits.requires_grad_()
    logprobs = token_logprobs(logits, torch.tensor([[0, 2, 1]]))
    assert logprobs.tolist() == [[0.0, -math.inf, pytest.approx(math.log(0.5))]]
    (gradient,) = torch.autograd.grad(torch.where(torch.isfinite(logprobs), logprobs, 0.0).sum(), logits)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("dtype", "expected"), RESULT_DTYPES.items())
def test_log_softmax_is_computed_in_at_least_float32(dtype: torch.dtype, expected: torch.dtype) -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64).to(dtype)
    assert promote(logits).dtype == expected
    actual = log_softmax(logits, 0.7)
    assert actual.dtype == expected
    torch.testing.assert_close(actual, torch.log_softmax(logits.to(expected) / 0.7, -1), rtol=0, atol=0)
    assert token_logprobs(logits, torch.zeros(2, 3, dtype=torch.long)).dtype == expected


@pytest.mark.parametrize(("dtype", "expected"), RESULT_DTYPES.items())
def test_linear_token_logprobs_are_computed_in_at_least_float32(dtype: torch.dtype, expected: torch.dtype) -> None:
    states, weight, bias, token_ids = random_case()
    states, weight, bias = states.to(dtype), weight.to(dtype), bias.to(dtype)
    actual = linear_token_logprobs(states, weight, token_ids, bias=bias)
    assert actual.dtype == expected
    dense = token_logprobs(torch.nn.functional.linear(states, weight, bias), token_ids)
    torch.testing.assert_close(actual, dense, rtol=0, atol={torch.float16: 5e-3, torch.bfloat16: 5e-2}.get(dtype, 1e-5))


def test_shift_right_moves_states_to_the_token_they_predict() -> None:
    states = torch.randn(2, 4, 3)
    moved = shift_right(states)
    assert not moved[:, 0].any()
    assert torch.equal(moved[:, 1:], states[:, :-1])


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5, 12, 100])
def test_linear_token_logprobs_equal_the_dense_formula_for_every_chunk_size(chunk_size: int | None) -> None:
    *tensors, token_ids = random_case()
    states, weight, bias = (x.requires_grad_() for x in tensors)
    dense = token_logprobs(states @ weight.T + bias, token_ids, 0.7)
    chunked = linear_token_logprobs(states, weight, token_ids, 0.7, bias, chunk_size)
    torch.testing.assert_close(chunked, dense, rtol=0, atol=1e-12)
    factors = torch.randn_like(dense)
    expected = torch.autograd.grad((dense * factors).sum(), [states, weight, bias])
    actual = torch.autograd.grad((chunked * factors).sum(), [states, weight, bias])
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-12)


def test_linear_token_logprobs_never_hold_all_logits_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_opd.functional.logprobs.MAX_CHUNK_ELEMENTS", 14)
    states, weight, _, token_ids = random_case(vocab=7)
    sizes: list[int] = []
    original = torch.nn.functional.linear

    def measure(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        out = original(x, w, b)
        sizes.append(out.numel())
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", measure)
    linear_token_logprobs(states, weight, token_ids)
    assert max(sizes) <= 14 < MAX_CHUNK_ELEMENTS


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_entropies_equal_the_dense_formula_and_carry_no_gradient(chunk_size: int | None) -> None:
    states, weight, bias, token_ids = random_case()
    states.requires_grad_()
    mask = torch.rand(token_ids.shape) < 0.6
    logprobs, entropies = linear_token_statistics(
        states, lambda x: torch.nn.functional.linear(x, weight, bias), token_ids, mask, 1.7, chunk_size
    )
    dense = torch.log_softmax((states @ weight.T + bias) / 1.7, -1)
    expected = torch.distributions.Categorical(logits=dense).entropy()
    torch.testing.assert_close(entropies, torch.where(mask, expected, 0.0), rtol=0, atol=1e-12)
    assert not entropies.requires_grad
    torch.testing.assert_close(
        logprobs, torch.where(mask, dense.gather(-1, token_ids[..., None]).squeeze(-1), 0.0), rtol=0, atol=1e-12
    )


def test_entropy_ignores_tokens_without_mass() -> None:
    logits = torch.tensor([[[0.0, 0.0, -torch.inf]]])
    mask = torch.ones(1, 1, dtype=torch.bool)
    _, entropies = linear_token_statistics(logits, lambda x: x, torch.zeros(1, 1, dtype=torch.long), mask)
    assert entropies.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_masked_positions_are_zero_and_receive_no_gradient_even_where_states_are_not_numbers(
    chunk_size: int | None,
) -> None:
    states = torch.randn(2, 4, 3)
    mask = torch.tensor([[False, True, True, False], [False, False, True, True]])
    states[~mask] = torch.nan
    states.requires_grad_()
    out = over_positions(lambda x: x.square().sum(-1), mask, states, chunk_size=chunk_size)
    assert torch.equal(out[~mask], torch.zeros(4))
    (gradient,) = torch.autograd.grad(out.sum(), states)
    assert not gradient[~mask].any()
    torch.testing.assert_close(gradient[mask], 2 * states.detach()[mask])


def test_an_empty_mask_gives_zeros_that_reach_every_parameter() -> None:
    head = torch.nn.Linear(3, 5)
    states = torch.randn(2, 4, 3, requires_grad=True)
    mask = torch.zeros(2, 4, dtype=torch.bool)
    logprobs, entropies = linear_token_statistics(states, head, torch.zeros(2, 4, dtype=torch.long), mask)
    assert not logprobs.any()
    assert not entropies.any()
    for gradient in torch.autograd.grad(logprobs.sum(), [states, *head.parameters()]):
        assert not gradient.any()


@given(shift=st.floats(-1e3, 1e3), scale=st.floats(1e-2, 1e2))
def test_logprobs_are_at_most_zero_and_do_not_move_with_a_constant(shift: float, scale: float) -> None:
    logits = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(1, 3, 4) * scale
    token_ids = torch.tensor([[3, 0, 2]])
    logprobs = token_logprobs(logits, token_ids)
    assert (logprobs <= 0).all()
    torch.testing.assert_close(token_logprobs(logits + shift, token_ids), logprobs, rtol=1e-9, atol=1e-9)


def test_shapes_and_dtypes_are_checked_while_tests_run() -> None:
    with pytest.raises(TypeCheckError, match="token_ids"):
        token_logprobs(torch.zeros(1, 3, 4), torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(TypeCheckError, match="logits"):
        token_logprobs(torch.zeros(1, 3, 4, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long))
