from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd import functional
from lightning_opd.functional.divergences import ReverseKL
from lightning_opd.functional.log_ratio_transforms import (
    BoundedDifference,
    Clip,
    Extrapolation,
    LogRatioTransform,
    OneSidedTrustRegion,
    expected_log_ratio,
    shape,
)
from tests.implementations import implementations

every_transform = pytest.mark.parametrize("log_ratio_transform", implementations(LogRatioTransform, functional))
logprob = st.floats(-30, -1e-3)


@every_transform
def test_a_transform_is_elementwise_and_leaves_no_gradient(log_ratio_transform: LogRatioTransform) -> None:
    student, teacher, reference = -torch.rand(3, 4, 5, dtype=torch.float64)
    whole = shape([log_ratio_transform], student.requires_grad_(), teacher, reference)
    assert not whole.requires_grad
    for i in range(4):
        torch.testing.assert_close(
            shape([log_ratio_transform], student[i, :2], teacher[i, :2], reference[i, :2]), whole[i, :2]
        )


@every_transform
def test_equal_models_give_zero(log_ratio_transform: LogRatioTransform) -> None:
    same = -torch.rand(3, 4)
    assert not shape([log_ratio_transform], same, same, same).any()


@every_transform
@pytest.mark.parametrize("impossible", range(1, 8))
def test_impossible_tokens_give_finite_log_ratios_and_expectations(
    log_ratio_transform: LogRatioTransform, impossible: int
) -> None:
    logits = torch.randn(3, 5)
    for model in range(3):
        if impossible & (1 << model):
            logits[model, 2] = -torch.inf
    student, teacher, reference = logits.log_softmax(-1)
    for transforms in ([log_ratio_transform], [log_ratio_transform, Clip(5.0)]):
        transformed = shape(transforms, student, teacher, reference)
        assert torch.isfinite(transformed).all()
        assert torch.isfinite(expected_log_ratio(transforms, student, teacher, reference))
    assert transformed.abs().max() <= 5


@every_transform
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_log_ratios_are_transformed_in_at_least_float32(
    log_ratio_transform: LogRatioTransform, dtype: torch.dtype, expected: torch.dtype
) -> None:
    student, teacher, reference = torch.randn(3, 2, 5).log_softmax(-1).to(dtype)
    assert shape([log_ratio_transform], student, teacher, reference).dtype == expected
    assert expected_log_ratio([log_ratio_transform], student, teacher, reference).dtype == expected


@every_transform
def test_the_reference_is_asked_for_exactly_where_it_is_needed(log_ratio_transform: LogRatioTransform) -> None:
    student, teacher, reference = torch.randn(3, 5).log_softmax(-1)
    if log_ratio_transform.needs_reference:
        with pytest.raises(ValueError, match=r"needs `reference_logprobs`, got None"):
            shape([log_ratio_transform], student, teacher)
    else:
        assert torch.equal(
            shape([log_ratio_transform], student, teacher), shape([log_ratio_transform], student, teacher, reference)
        )


def test_without_transforms_it_is_the_log_ratio_and_its_mean_the_reverse_kl() -> None:
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64).log_softmax(-1)
    assert torch.equal(shape([], student, teacher), teacher - student)
    torch.testing.assert_close(expected_log_ratio([], student, teacher), ReverseKL()(student, teacher))


@given(student=logprob, teacher=logprob, limit=st.floats(0.1, 10), exponent=st.floats(0.05, 5))
def test_bounded_forms_keep_the_sign_and_their_bound(
    student: float, teacher: float, limit: float, exponent: float
) -> None:
    pair = [torch.tensor(x, dtype=torch.float64) for x in (student, teacher)]
    r = teacher - student
    clipped, difference = (shape([s], *pair).item() for s in (Clip(limit), BoundedDifference(exponent)))
    assert clipped == pytest.approx(max(-limit, min(limit, r)))
    assert difference == pytest.approx(math.exp(teacher) ** exponent - math.exp(student) ** exponent, abs=1e-12)
    assert abs(difference) <= 1
    assert clipped * r >= 0
    assert difference * r >= 0


def test_a_small_exponent_is_the_log_ratio_scaled() -> None:
    student, teacher = torch.tensor([-1.0, -3.0]).double(), torch.tensor([-2.0, -0.5]).double()
    torch.testing.assert_close(
        shape([BoundedDifference(1e-7)], student, teacher) / 1e-7, teacher - student, rtol=1e-5, atol=0
    )


def test_extrapolation_is_the_published_form_and_names_its_fixed_point() -> None:
    student, teacher, reference = torch.randn(3, 4, dtype=torch.float64).log_softmax(-1)
    scale = 1.7
    expected = (teacher - reference) * scale - (student - reference)
    torch.testing.assert_close(shape([Extrapolation(scale)], student, teacher, reference), expected)
    fixed_point = (scale * teacher + (1 - scale) * reference).log_softmax(-1)
    flat = shape([Extrapolation(scale)], fixed_point, teacher, reference)
    torch.testing.assert_close(flat, flat[:1].expand(4))  # a constant: no expected gradient
    assert torch.equal(shape([Extrapolation(1.0)], student, teacher, reference), teacher - student)


def test_the_trust_region_closes_the_way_out_and_never_the_way_back() -> None:
    teacher = torch.full((4,), -2.0)
    student = teacher + torch.tensor([0.5, 1.5, -0.5, -1.5])
    region = OneSidedTrustRegion(low=1.0, high=1.0)
    up, down = torch.ones(4), -torch.ones(4)
    assert region(up, student, teacher).tolist() == [1.0, 0.0, 1.0, 1.0]
    assert region(down, student, teacher).tolist() == [-1.0, -1.0, -1.0, 0.0]
    wide_above, wide_below = OneSidedTrustRegion(low=0.2, high=2.0), OneSidedTrustRegion(low=2.0, high=0.2)
    assert wide_above(up, student, teacher).tolist() == [1.0, 1.0, 1.0, 1.0]
    assert wide_above(down, student, teacher).tolist() == [-1.0, -1.0, 0.0, 0.0]
    assert wide_below(up, student, teacher).tolist() == [0.0, 0.0, 1.0, 1.0]
    assert wide_below(down, student, teacher).tolist() == [-1.0, -1.0, -1.0, -1.0]


@given(student=logprob, teacher=logprob, bound=st.floats(0, 2))
def test_the_trust_region_leaves_a_plain_log_ratio_alone(student: float, teacher: float, bound: float) -> None:
    pair = [torch.tensor(x, dtype=torch.float64) for x in (student, teacher)]
    for before in ([], [Clip(1.0)], [BoundedDifference(2.0)]):
        assert torch.equal(shape([*before, OneSidedTrustRegion(bound, bound)], *pair), shape(before, *pair))


def test_settings_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="`limit` must be positive, got 0"):
        Clip(0.0)
    with pytest.raises(ValueError, match="`exponent` must be positive, got -1"):
        BoundedDifference(-1.0)
    with pytest.raises(ValueError, match=r"must not be negative, got -1\.0 and 1\.0"):
        OneSidedTrustRegion(low=-1.0)
