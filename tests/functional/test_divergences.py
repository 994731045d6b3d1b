from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_opd import functional
from lightning_opd.functional.divergences import (
    Divergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
)
from lightning_opd.functional.top_k import TopK
from tests.functional.fused_cases import DIVERGENCES, VOCAB
from tests.implementations import implementations

EXAMPLES: dict[str, list[Divergence]] = {
    "JensenShannon": [JensenShannon(w) for w in (0.5, 0.3)],
    # as many tokens as the vocabulary holds: what a smaller k does is in the tests of `top_k`
    "TopK": [
        TopK(ForwardKL(), 99, "student", "renormalise"),
        TopK(ReverseKL(), 99, "union", "tail"),
        TopK(JensenShannon(), 99, "intersection", "tail"),
    ],
}
every_divergence = pytest.mark.parametrize("divergence", implementations(Divergence, functional, EXAMPLES))
logit_rows = st.lists(st.floats(-30, 30), min_size=5, max_size=5)


@every_divergence
@given(student=logit_rows, teacher=logit_rows)
def test_divergence_is_never_negative(divergence: Divergence, student: list[float], teacher: list[float]) -> None:
    value = divergence(torch.tensor(student, dtype=torch.float64), torch.tensor(teacher, dtype=torch.float64))
    assert value.item() >= -1e-12


@every_divergence
@given(logits=logit_rows, shift=st.floats(-10, 10))
def test_divergence_and_its_gradient_vanish_at_equality(
    divergence: Divergence, logits: list[float], shift: float
) -> None:
    student = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    value = divergence(student, student.detach() + shift)
    (gradient,) = torch.autograd.grad(value, student)
    assert abs(value.item()) <= 1e-12
    assert gradient.abs().max().item() <= 1e-12


@every_divergence
def test_divergence_tells_different_distributions_apart(divergence: Divergence) -> None:
    assert divergence(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 2.0])).item() > 0.01


@every_divergence
def test_divergence_has_the_gradient_of_finite_differences(divergence: Divergence) -> None:
    student = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: divergence(z, teacher), student)


@every_divergence
def test_descending_the_divergence_leads_to_the_teacher(divergence: Divergence) -> None:
    student = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([0.5, -0.5, 1.0, 0.0], dtype=torch.float64)
    start = divergence(student, teacher).item()
    for _ in range(200):
        (gradient,) = torch.autograd.grad(divergence(student, teacher), student)
        student = (student - 0.5 * gradient).detach().requires_grad_()
    assert divergence(student, teacher).item() < 1e-3 * start


@every_divergence
@pytest.mark.parametrize("banned_by", ["student", "teacher", "both"])
def test_divergence_stays_finite_where_a_token_has_no_mass(divergence: Divergence, banned_by: str) -> None:
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    if banned_by != "teacher":
        student[:, 1] = -torch.inf
    if banned_by != "student":
        teacher[:, 1] = -torch.inf
    student.requires_grad_()
    value = divergence(student, teacher)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@pytest.mark.parametrize("broken", ["student", "teacher"])
def test_what_is_no_number_is_never_taken_for_a_missing_token(divergence: Divergence, broken: str) -> None:
    student, teacher = torch.randn(2, 3, VOCAB).unbind()
    rows = student if broken == "student" else teacher
    rows[1] = math.nan
    with_gradient, _ = divergence.with_gradient(student.clone(), teacher.clone(), gradient=False)
    for values in (divergence(student, teacher), with_gradient):
        assert values.isnan().tolist() == [False, True, False]


@every_divergence
def test_divergence_keeps_the_leading_shape_and_treats_rows_alone(divergence: Divergence) -> None:
    student, teacher = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    value = divergence(student, teacher)
    assert value.shape == (2, 3)
    torch.testing.assert_close(divergence(student[1, 2], teacher[1, 2]), value[1, 2])


@every_divergence
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_divergence_is_computed_in_at_least_float32(
    divergence: Divergence, dtype: torch.dtype, expected: torch.dtype
) -> None:
    student, teacher = torch.randn(3, 8).to(dtype), torch.randn(3, 8).to(dtype)
    value = divergence(student, teacher)
    assert value.dtype == expected
    torch.testing.assert_close(value.double(), divergence(student.double(), teacher.double()), rtol=1e-4, atol=1e-5)


def by_hand(student: Tensor, teacher: Tensor) -> tuple[list[float], list[float]]:
    """Normalise with plain floats."""
    p, q = ([math.exp(float(z)) for z in logits] for logits in (student, teacher))
    return [x / sum(p) for x in p], [x / sum(q) for x in q]


def plain_kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("weight", [0.5, 0.2, 0.9])
def test_divergences_equal_their_plain_sums(weight: float) -> None:
    student, teacher = torch.randn(2, 5, dtype=torch.float64)
    p, q = by_hand(student, teacher)
    m = [weight * b + (1 - weight) * a for a, b in zip(p, q, strict=True)]
    jensen_shannon = weight * plain_kl(q, m) + (1 - weight) * plain_kl(p, m)
    assert ReverseKL()(student, teacher).item() == pytest.approx(plain_kl(p, q), abs=1e-12)
    assert ForwardKL()(student, teacher).item() == pytest.approx(plain_kl(q, p), abs=1e-12)
    assert JensenShannon(weight)(student, teacher).item() == pytest.approx(jensen_shannon, abs=1e-12)


@every_divergence
def test_logprobs_will_do_in_the_place_of_logits(divergence: Divergence) -> None:
    student, teacher = torch.randn(2, 3, 6, dtype=torch.float64)
    from_logprobs = divergence(student.log_softmax(-1), teacher.log_softmax(-1))
    torch.testing.assert_close(from_logprobs, divergence(student, teacher), rtol=0, atol=1e-12)


def test_the_forward_kl_has_the_gradient_of_supervised_training_however_far_the_student_is() -> None:
    student = torch.tensor([0.0, -300.0, 1.0], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(ForwardKL()(student, teacher), student)
    expected = student.detach().softmax(-1) - teacher.softmax(-1)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_jensen_shannon_tends_to_both_kls_and_is_bounded() -> None:
    student, teacher = torch.randn(2, 5, dtype=torch.float64)
    w = 1e-6
    assert JensenShannon(w)(student, teacher).item() / w == pytest.approx(ForwardKL()(student, teacher).item(), 1e-4)
    other = JensenShannon(1 - w)(student, teacher).item() / w
    assert other == pytest.approx(ReverseKL()(student, teacher).item(), 1e-4)
    apart = torch.tensor([50.0, -50.0], dtype=torch.float64)
    assert JensenShannon()(apart, -apart).item() == pytest.approx(math.log(2), abs=1e-9)


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.5])
def test_jensen_shannon_refuses_a_weight_at_which_it_is_nothing(weight: float) -> None:
    with pytest.raises(ValueError, match=rf"`weight` must lie in \(0, 1\), got {weight}.*ReverseKL"):
        JensenShannon(weight)


def test_reverse_kl_punishes_mass_the_teacher_forbids_and_not_mass_the_student_drops() -> None:
    one, half = torch.tensor([0.0, -torch.inf]), torch.tensor([0.0, 0.0])
    assert ReverseKL()(one, half).item() == pytest.approx(math.log(2), abs=1e-6)
    assert ReverseKL()(half, one).item() > 40
