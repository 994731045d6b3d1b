"""Log-probs of tokens formed in the pass of a divergence, against both plain formulas."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_opd.functional import heads, logprobs
from lightning_opd.functional.divergences import Divergence, ReverseKL
from lightning_opd.functional.fused import Fused, Tokens
from lightning_opd.functional.fused_gradients import WeightsOf
from lightning_opd.functional.top_k import TopK, top_k_divergence
from tests.functional.fused_cases import DIVERGENCES, VOCAB, Case

Forecast: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor | None, Tensor | WeightsOf | None]]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, and several blocks in each."""
    monkeypatch.setitem(logprobs.CHUNK_BYTES, "cpu", 8 * VOCAB * 4)
    monkeypatch.setitem(heads.BLOCK_ELEMENTS, "cpu", VOCAB * 3)


def made(seed: int = 0, *, is_frozen: bool = False, **options: object) -> Case:
    """Return a case whose student has the teachers' vocabulary."""
    case = Case(seed, **options)  # type: ignore[arg-type]
    case.head = dataclasses.replace(case.head, vocab_size=VOCAB)
    if is_frozen:
        case.weight.requires_grad_(False)
        case.inputs = [case.states]
    return case


CASES = st.builds(
    made,
    st.integers(0, 99),
    is_frozen=st.booleans(),
    scale=st.sampled_from([1.0, 0.3]),
    soft_cap=st.sampled_from([None, 2.0]),
    has_bias=st.booleans(),
    num=st.sampled_from([1, 2, 9]),
)
# of the divergences and of the log-probs: the truth, the truth as a function, each wrong alone, only one known, nothing
FORECASTS: st.SearchStrategy[Forecast] = st.sampled_from(
    [
        lambda v, w: (v, w),
        lambda v, w: (-3 * v, lambda positions, values: -3 * w[positions] + 0 * values),
        lambda v, w: (v, 2 * w),
        lambda v, w: (2 * v, w),
        lambda v, w: (v, None),
        lambda v, w: (None, w),
        lambda v, w: (None, None),
    ]
)


def weights_of(case: Case) -> tuple[Tensor, Tensor]:
    """Return those of divergences and of log-probs, some of them 0, alone and together."""
    one, other = case.weights.clone(), case.weights.flip(0) * 5
    one[::3], other[::2] = 0.0, 0.0
    return one, other


def plain(case: Case, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """Return divergences and log-probs of whole logits."""
    logits, theirs = case.logits()
    chosen = torch.log_softmax(logits, -1).gather(-1, case.ids[:, None]).squeeze(-1)
    return divergence(logits, theirs), chosen


def check(case: Case, found: Fused, expected: tuple[Tensor, Tensor]) -> None:
    """Compare values, and the gradients of their weighted sum and of the log-probs alone."""
    assert found.logprobs is not None
    one, other = weights_of(case)
    sums = []
    for values, chosen in ((found.values, found.logprobs), expected):
        loss = (values * one).sum() + (chosen * other).sum()
        alone = torch.autograd.grad((chosen * other).sum(), case.inputs, retain_graph=True)
        sums.append((values, chosen, loss, *torch.autograd.grad(loss, case.inputs, retain_graph=True), *alone))
    for actual, plain_one in zip(*sums, strict=True):
        torch.testing.assert_close(actual, plain_one, rtol=0, atol=1e-10)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@settings(max_examples=10)
@given(CASES, FORECASTS)
def test_both_are_those_of_the_logits(divergence: Divergence, case: Case, forecast: Forecast) -> None:
    own, its = forecast(*weights_of(case))
    found = divergence.from_states(case.student, case.teachers, own, Tokens(case.ids, its))
    check(case, found, plain(case, divergence))


@settings(max_examples=10)
@given(CASES, FORECASTS)
def test_both_are_those_of_the_logits_beside_a_served_top_k(case: Case, forecast: Forecast) -> None:
    logits, theirs = case.logits()
    top = torch.log_softmax(theirs, -1).topk(4)
    own, its = forecast(*weights_of(case))
    divergence = TopK(ReverseKL(), 4)
    found = divergence.from_top_k(case.student, top.indices, top.values.detach(), own, Tokens(case.ids, its))
    values = top_k_divergence(divergence.divergence, logits, top.indices, top.values.detach())
    check(case, found, (values, plain(case, divergence)[1]))


def test_a_matrix_that_is_the_embedding_too_gets_all_gradients() -> None:
    case = made()
    one, other = weights_of(case)
    case.states = case.weight[case.ids]
    found = ReverseKL().from_states(case.student, case.teachers, one, Tokens(case.ids, other))
    assert found.logprobs is not None
    sums = [(v * one).sum() + (w * other).sum() for v, w in ((found.values, found.logprobs), plain(case, ReverseKL()))]
    one, other = (torch.autograd.grad(x, case.weight, retain_graph=True)[0] for x in sums)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_keeps_the_gradient_of_small_weights(dtype: torch.dtype) -> None:
    case = made(dtype=dtype)
    one, other = (x.float() * 2.0**-30 for x in weights_of(case))
    found = ReverseKL().from_states(case.student, case.teachers, one, Tokens(case.ids, other))
    assert found.logprobs is not None
    assert found.logprobs.dtype == torch.float32
    values, chosen = plain(case, ReverseKL())
    actual = torch.autograd.grad((found.values * one).sum() + (found.logprobs * other).sum(), case.inputs)
    expected = torch.autograd.grad((values * one).sum() + (chosen * other).sum(), case.inputs)
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0.03 * float(y.abs().max()))


def test_a_teacher_with_a_smaller_vocabulary_leaves_the_log_probs_to_a_pass_of_their_own() -> None:
    case = Case()
    assert ReverseKL().from_states(case.student, case.teachers, None, Tokens(case.ids)).logprobs is None


def test_log_probs_beside_a_divergence_take_no_product_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, original = [0], torch.mm

    def counted(*arguments: Tensor, out: Tensor | None = None) -> Tensor:
        counts[0] += 1
        return original(*arguments) if out is None else original(*arguments, out=out)

    monkeypatch.setattr(torch, "mm", counted)
    found = []
    for has_tokens in (False, True):
        case = made()
        one, other = weights_of(case)
        tokens = Tokens(case.ids, other) if has_tokens else None
        values, _, chosen = ReverseKL().from_states(case.student, case.teachers, one, tokens)
        loss = (values * one).sum() + (0 if chosen is None else (chosen * other).sum())
        torch.autograd.grad(loss, case.inputs)
        found.append(counts[0])
    assert found == [12, 24]  # the logits, the teacher's and the gradient in the states, of four chunks
