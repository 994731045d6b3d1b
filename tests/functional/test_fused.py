from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_opd.functional import heads, logprobs
from lightning_opd.functional.divergences import Divergence, ForwardKL, JensenShannon, ReverseKL
from lightning_opd.functional.fused import token_statistics
from lightning_opd.functional.heads import HeadStates
from lightning_opd.functional.top_k import TopK, top_k_divergence
from lightning_opd.types import LinearHead
from tests.functional.fused_cases import DIVERGENCES, NUM, ROWS, VOCAB, Case

every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)


@pytest.fixture(autouse=True)
def filled_memory() -> Iterator[None]:
    """Fill memory that nothing was written to with NaN: nothing is computed from it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, and several blocks in each."""
    monkeypatch.setitem(logprobs.CHUNK_BYTES, "cpu", 8 * VOCAB * 4)
    monkeypatch.setitem(heads.BLOCK_ELEMENTS, "cpu", VOCAB * 3)


CASES = st.builds(
    Case,
    st.integers(0, 99),
    scale=st.sampled_from([1.0, 0.3, 4.0]),
    soft_cap=st.sampled_from([None, 2.0, 30.0]),
    has_bias=st.booleans(),
    temperatures=st.tuples(*[st.sampled_from([1.0, 0.6, 1.7])] * 2),
    num=st.sampled_from([1, 2, 9]),
)
# what may be said of the gradient beforehand: the truth, twice it, another, nothing
FORECASTS = st.sampled_from([lambda w: w, lambda w: -2 * w, torch.ones_like, torch.zeros_like, lambda w: None])


@every_divergence
@settings(max_examples=8)
@given(CASES, FORECASTS)
def test_a_divergence_from_states_is_that_of_the_logits(divergence: Divergence, case: Case, forecast: object) -> None:
    assert callable(forecast)
    values = divergence.from_states(case.student, case.teachers, forecast(case.weights)).values
    case.same(values, divergence(*case.logits()))


@settings(max_examples=20)
@given(CASES, FORECASTS, st.booleans())
def test_log_probs_and_entropies_from_states_are_those_of_the_logits(
    case: Case,
    forecast: object,
    with_entropies: bool,  # drawn by hypothesis
) -> None:
    assert callable(forecast)
    values, entropies = token_statistics(case.student, case.ids, forecast(case.weights), with_entropies=with_entropies)
    dense = torch.log_softmax(case.head.logits(case.states) / case.temperatures[0], -1)
    case.same(values, dense.gather(-1, case.ids[:, None]).squeeze(-1))
    assert (entropies is not None) == with_entropies
    if entropies is not None:
        assert not entropies.requires_grad
        torch.testing.assert_close(entropies, -(dense.exp() * dense).sum(-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("correction", ["tail", "renormalise"])
@pytest.mark.parametrize("inner", [ReverseKL(), ForwardKL(), JensenShannon()], ids=str)
def test_a_served_top_k_from_states_is_that_of_the_logits(inner: Divergence, correction: str) -> None:
    case = Case(has_bias=True)
    logits = torch.log_softmax(case.head.logits(case.states) / 0.7, -1)
    top = torch.log_softmax(torch.randn(NUM, VOCAB + 1, dtype=torch.float64), -1).topk(4)
    top.values[0, 2:] = -torch.inf
    found = TopK(inner, 4, correction=correction).from_top_k(case.student, top.indices, top.values, case.weights)
    case.same(found.values, top_k_divergence(inner, logits, top.indices, top.values, correction))


@every_divergence
@pytest.mark.parametrize("impossible", [-math.inf, -1e4, -150.0])
def test_impossible_tokens_count_as_in_the_plain_form(divergence: Divergence, impossible: float) -> None:
    """In the student, in the teacher, and in both."""
    case = Case(has_bias=True, temperatures=(1.0, 1.0))
    bias = torch.zeros(ROWS, dtype=torch.float64)
    bias[[2, 3]] = impossible
    teacher_bias = torch.zeros_like(bias)
    teacher_bias[[3, 4]] = impossible
    case.head = LinearHead(case.weight, bias, VOCAB)
    case.teacher_head = LinearHead(case.teacher_head.weight, teacher_bias, VOCAB)
    case.inputs = case.inputs[:2]
    for forecast in (case.weights, None):
        case.same(divergence.from_states(case.student, case.teachers, forecast).values, divergence(*case.logits()))


@pytest.mark.parametrize("divergence", DIVERGENCES[:5], ids=str)
def test_the_gradient_is_that_of_finite_differences(divergence: Divergence) -> None:
    case = Case(scale=0.5, soft_cap=3.0, num=2)
    ones = torch.ones(2, dtype=torch.float64)

    def loss(states: Tensor, weight: Tensor) -> Tensor:
        head = LinearHead(weight, None, VOCAB, scale=0.5, soft_cap=3.0)
        return divergence.from_states(HeadStates(states, head, 0.7), case.teachers, ones).values.sum()

    assert torch.autograd.gradcheck(loss, (case.states, case.weight), fast_mode=True)


@every_divergence
def test_without_positions_every_parameter_stays_in_the_graph(divergence: Divergence) -> None:
    case = Case(has_bias=True, num=0)
    values = divergence.from_states(case.student, case.teachers, case.weights).values
    assert [bool(g.any()) for g in case.gradients(values)] == [False] * 3


def test_a_right_forecast_forms_the_logits_once_and_a_wrong_one_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in products per position: logits, both gradients, and the teacher's logits."""
    counts = [0]
    for name in ("mm", "addmm"):
        original = getattr(torch, name)

        def counted(
            *arguments: Tensor, original: Callable[..., Tensor] = original, out: Tensor | None = None
        ) -> Tensor:
            counts[0] += 1
            return original(*arguments) if out is None else original(*arguments, out=out)

        monkeypatch.setattr(torch, name, counted)
    found = {}
    for name, forecast in (("right", lambda w: 2 * w), ("none", lambda w: None), ("wrong", torch.ones_like)):
        case = Case()
        counts[0] = 0
        values = ReverseKL().from_states(case.student, case.teachers, forecast(case.weights)).values
        torch.autograd.grad((values * case.weights).sum(), case.inputs)
        found[name] = counts[0]
    num_chunks = 4  # of two teachers' five positions each; the gradient in the matrix is no `mm`
    assert found == {"right": 3 * num_chunks, "none": 5 * num_chunks, "wrong": 6 * num_chunks}


def test_a_second_backward_gives_the_same_gradient() -> None:
    case = Case()
    values = ReverseKL().from_states(case.student, case.teachers, case.weights).values
    first, second = case.gradients(values, 3 * case.weights), case.gradients(values, 3 * case.weights)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_matrix_that_is_the_embedding_too_gets_both_gradients() -> None:
    case = Case()
    rows = case.ids
    found = []
    for is_fused in (True, False):
        states = case.weight[rows]
        head_states = HeadStates(states, case.head, 0.7)
        if is_fused:
            values = ReverseKL().from_states(head_states, case.teachers, case.weights).values
        else:
            ours = case.head.logits(states)[:, :VOCAB] / 0.7
            values = ReverseKL()(ours, case.logits()[1])
        found.append(torch.autograd.grad((values * case.weights).sum(), case.weight)[0])
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_frozen_matrix_gets_no_gradient_and_the_states_theirs(*, is_frozen: bool) -> None:
    case = Case()
    case.weight.requires_grad_(not is_frozen)
    values, _ = token_statistics(case.student, case.ids, case.weights)
    (values * case.weights).sum().backward()
    assert (case.weight.grad is None) == is_frozen
    assert case.states.grad is not None
    assert case.states.grad.abs().sum() > 0


def test_without_a_graph_nothing_is_remembered() -> None:
    case = Case()
    with torch.no_grad():
        values = ReverseKL().from_states(case.student, case.teachers, case.weights).values
    assert not values.requires_grad
    torch.testing.assert_close(values, ReverseKL()(*case.logits()).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES[:5], ids=str)
@pytest.mark.parametrize("in_autocast", [True, False])
def test_bfloat16_heads_give_float32_values_and_the_gradient_of_the_plain_form(
    divergence: Divergence, *, in_autocast: bool
) -> None:
    """Within the precision of the products, with weights of a mean over many tokens."""
    dtype = torch.float32 if in_autocast else torch.bfloat16
    case = Case(dtype=dtype, has_bias=True)
    case.weights = case.weights / 4096
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_autocast):
        values = divergence.from_states(case.student, case.teachers, case.weights).values
        plain = divergence(*case.logits())
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, plain, rtol=0, atol=1e-5)
    for one, other in zip(case.gradients(values), case.gradients(plain), strict=True):
        assert one.dtype == dtype
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=0.03 * scale)


def test_states_that_already_are_logits_get_their_gradient() -> None:
    """Padded columns get none."""
    case = Case()
    logits = torch.randn(NUM, ROWS, dtype=torch.float64, requires_grad=True)
    student = HeadStates(logits, LinearHead(None, None, VOCAB), 0.7)
    values = ReverseKL().from_states(student, case.teachers, case.weights).values
    plain = ReverseKL()(logits[:, :VOCAB] / 0.7, case.logits()[1])
    one, other = (torch.autograd.grad((x * case.weights).sum(), logits)[0] for x in (values, plain))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert not one[:, VOCAB:].any()


def test_weights_may_depend_on_the_values() -> None:
    case = Case()

    def weights_of(positions: slice, values: Tensor) -> Tensor:
        return case.weights[positions] * values.exp()

    values, _ = token_statistics(case.student, case.ids, weights_of)
    dense = torch.log_softmax(case.head.logits(case.states) / 0.7, -1).gather(-1, case.ids[:, None]).squeeze(-1)
    weights = case.weights * dense.detach().exp()
    for one, other in zip(case.gradients(values, weights), case.gradients(dense, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_weights_that_hold_what_holds_the_values_are_let_go() -> None:
    """Such a circle, with the memory of all gradients, would live until the garbage collector comes."""

    def circle() -> weakref.ref[Tensor]:
        case, held = Case(), list[Tensor]()
        values, _ = token_statistics(case.student, case.ids, lambda positions, _: case.weights[positions] + len(held))
        held.append(values)
        return weakref.ref(values)

    reference = circle()
    assert reference() is None
