from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_opd.functional.divergences import Divergence, ForwardKL, JensenShannon, ReverseKL
from lightning_opd.functional.top_k import TopK, support_statistics, top_k_divergence

DIVERGENCES = [ReverseKL(), ForwardKL(), JensenShannon(0.3)]
SUPPORTS = ["student", "teacher", "union", "intersection"]
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: type(d).__name__)
every_support = pytest.mark.parametrize("support", SUPPORTS)
every_correction = pytest.mark.parametrize("correction", ["tail", "renormalise"])


def supports(student: Tensor, teacher: Tensor, k: int, support: str) -> list[int]:
    """Find a support with sets."""
    s, t = (set(x.argsort(descending=True)[:k].tolist()) for x in (student, teacher))
    return sorted({"student": s, "teacher": t, "union": s | t, "intersection": s & t}[support])


@every_divergence
@every_support
@every_correction
@given(seed=st.integers(0, 2**16), k=st.integers(1, 7))
def test_top_k_equals_the_plain_sum_over_the_coarsened_distributions(
    divergence: Divergence, support: str, correction: str, seed: int, k: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 6, dtype=torch.float64, generator=generator) * 2
    chosen = supports(student, teacher, k, support)
    p, q = student.softmax(-1), teacher.softmax(-1)
    if correction == "tail":
        others = [i for i in range(6) if i not in chosen]
        p, q = (torch.cat([x[chosen], x[others].sum()[None]]) for x in (p, q))
    else:
        p, q = (x[chosen] / x[chosen].sum() for x in (p, q))
    expected = divergence(p.log(), q.log()).item() if len(chosen) else 0.0
    actual = TopK(divergence, k, support, correction)(student, teacher).item()
    assert actual == pytest.approx(expected, abs=1e-12)
    assert actual >= -1e-12
    if correction == "tail":
        assert actual <= divergence(student, teacher).item() + 1e-12


@every_divergence
@every_support
@every_correction
@pytest.mark.parametrize("k", [1, 3, 6, 99])
def test_teacher_equal_to_student_has_no_gradient(
    divergence: Divergence, support: str, correction: str, k: int
) -> None:
    student = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    value = TopK(divergence, k, support, correction)(student, student.detach() + 3.0)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


@every_divergence
@every_support
@every_correction
def test_top_k_has_the_gradient_of_finite_differences(divergence: Divergence, support: str, correction: str) -> None:
    student = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: TopK(divergence, 3, support, correction)(z, teacher), student)


def test_the_raw_sum_would_drive_mass_off_the_support_even_at_equality() -> None:
    student = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    p = student.log_softmax(-1)
    raw = (p.exp() * (p - p.detach()))[:2].sum()
    (gradient,) = torch.autograd.grad(raw, student)
    assert gradient[:2].min() > 0.01  # descending lowers the logits of S
    assert gradient[2:].max() < -0.01


def test_the_fixed_points_are_as_documented() -> None:
    teacher = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)

    def minimum(correction: str) -> Tensor:
        student = torch.tensor([0.0, 0.5, 0.2, 0.4], dtype=torch.float64)
        loss = TopK(ReverseKL(), 2, "teacher", correction)
        for _ in range(400):
            student.requires_grad_()
            (gradient,) = torch.autograd.grad(loss(student, teacher), student)
            student = student.detach() - 4 * gradient
        return student.softmax(-1)

    p = teacher.softmax(-1)
    tail, renormalised = minimum("tail"), minimum("renormalise")
    torch.testing.assert_close(tail[:2], p[:2], rtol=0, atol=1e-6)
    assert (tail[2] / tail[3] - p[2] / p[3]).abs() > 0.1  # how the rest is spread stays open
    torch.testing.assert_close(renormalised[0] / renormalised[1], p[0] / p[1], rtol=0, atol=1e-6)
    assert (renormalised[2:].sum() - p[2:].sum()).abs() > 0.01  # and here how much the rest is


@every_divergence
@every_correction
@pytest.mark.parametrize("k", [1, 3, 6])
def test_a_teacher_with_only_its_top_k_gives_the_same(divergence: Divergence, correction: str, k: int) -> None:
    student = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 6, dtype=torch.float64)
    top = teacher.log_softmax(-1).topk(k)
    served = top_k_divergence(divergence, student, top.indices, top.values, correction)
    local = TopK(divergence, k, "teacher", correction)(student, teacher)
    if k == 6 and correction == "tail":  # what the server cannot resolve counts as its precision
        torch.testing.assert_close(served, local, rtol=0, atol=1e-11)
        return
    torch.testing.assert_close(served, local, rtol=0, atol=1e-12)
    actual, expected = (torch.autograd.grad(x.sum(), student)[0] for x in (served, local))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@every_correction
def test_missing_entries_of_a_server_are_not_in_the_support(correction: str) -> None:
    student, ids = torch.randn(1, 6, dtype=torch.float64), torch.tensor([[4, 1, -1, -1]])
    logprobs = torch.tensor([[-0.5, -1.5, -torch.inf, -torch.inf]], dtype=torch.float64)
    ragged = top_k_divergence(ReverseKL(), student, ids, logprobs, correction)
    torch.testing.assert_close(
        ragged, top_k_divergence(ReverseKL(), student, ids[:, :2], logprobs[:, :2], correction), rtol=0, atol=1e-12
    )


@every_divergence
@every_support
@every_correction
@pytest.mark.parametrize("k", [1, 2, 6])
def test_banned_tokens_give_finite_values_and_gradients(
    divergence: Divergence, support: str, correction: str, k: int
) -> None:
    student, teacher = torch.randn(2, 4, 6)
    student[:, 1] = student[2:, 2:] = -torch.inf
    teacher[:, 4] = teacher[::2, :2] = -torch.inf
    student.requires_grad_()
    value = TopK(divergence, k, support, correction)(student, teacher)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


def test_an_empty_intersection_says_nothing_or_compares_nothing_but_the_rest() -> None:
    student, teacher = torch.tensor([[9.0, 0.0, 1.0]]).requires_grad_(), torch.tensor([[0.0, 9.0, 1.0]])
    for correction in ("tail", "renormalise"):
        value = TopK(ReverseKL(), 1, "intersection", correction)(student, teacher)
        assert abs(value.item()) < 1e-6
        assert torch.autograd.grad(value.sum(), student)[0].abs().max() < 1e-6


@pytest.mark.parametrize("raw", ["raw", "none", ""])
def test_the_raw_form_cannot_be_built(raw: str) -> None:
    with pytest.raises(ValueError, match=r"`correction` must be tail or renormalise.*drives mass off S"):
        TopK(ReverseKL(), 4, "teacher", raw)
    with pytest.raises(ValueError, match=r"`correction` must be tail or renormalise.*drives mass off S"):
        top_k_divergence(ReverseKL(), torch.zeros(1, 4), torch.tensor([[1]]), torch.tensor([[-0.5]]), raw)


def test_a_support_without_tokens_or_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
        TopK(ReverseKL(), 0)
    with pytest.raises(ValueError, match="`support` must be student, teacher, union or intersection, got 'mine'"):
        TopK(ReverseKL(), 4, "mine")


def test_support_statistics_count_and_add_up() -> None:
    student = torch.tensor([0.5, 0.3, 0.1, 0.1 - 1e-9], dtype=torch.float64).log()
    teacher = torch.tensor([0.6, 0.05, 0.3, 0.05 - 1e-9], dtype=torch.float64).log()
    overlap, student_mass, teacher_mass = support_statistics(student, teacher, 2)
    assert overlap.item() == 0.5
    assert student_mass.item() == pytest.approx(0.6, abs=1e-6)
    assert teacher_mass.item() == pytest.approx(0.65, abs=1e-6)
    assert support_statistics(torch.randn(2, 3, 8).bfloat16(), torch.randn(2, 3, 8), 4).overlap.shape == (2, 3)


def test_a_served_log_prob_that_is_no_number_is_not_missing() -> None:
    ids, logprobs = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[-1.0, math.nan], [-1.0, -math.inf]])
    for correction in ("tail", "renormalise"):
        values = top_k_divergence(ReverseKL(), torch.randn(2, 5), ids, logprobs, correction)
        assert values.isnan().tolist() == [True, False]
