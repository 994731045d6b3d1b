from __future__ import annotations

import math
from typing import Literal, TypeAlias

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_opd import functional
from lightning_opd.functional.advantages import Immediate
from lightning_opd.functional.alignment import Alignment, align
from lightning_opd.functional.credit import (
    AlignedCredit,
    ExactMatchCredit,
    PrefixCredit,
    SequenceCredit,
    SpanCredit,
    SpliceCredit,
)
from tests.implementations import implementations
from tests.teachers.cross_tokenizer.texts import WORLDS, Texts

DIVISIONS: tuple[Literal["whole", "equal", "proportional"], ...] = ("whole", "equal", "proportional")
EXAMPLES = {"SpanCredit": [SpanCredit(division) for division in DIVISIONS]}
every_credit = pytest.mark.parametrize("credit", implementations(AlignedCredit, functional, EXAMPLES))
ALIGNMENT = align([(0, 1), (1, 2), (2, 4), (4, 5)], [(0, 2), (2, 4), (4, 5)])
STUDENT, TEACHER = torch.tensor([-1.0, -3.0, -0.5, -2.0]), torch.tensor([-2.0, -0.25, -1.0])


@every_credit
def test_one_tokenisation_gives_the_teachers_log_probs_to_the_last_bit(credit: AlignedCredit) -> None:
    student, teacher = -torch.rand(50) * 20, -torch.rand(50) * 20
    spans = [(i, i + 1) for i in range(50)]
    compared, is_aligned = credit(student, teacher, align(spans, spans))
    assert is_aligned.all()
    if isinstance(credit, SequenceCredit):
        torch.testing.assert_close(compared - student, (teacher.sum() - student.sum()).expand(50))
    else:
        assert torch.equal(compared, teacher)


@every_credit
def test_equal_texts_of_equal_probability_give_no_signal(credit: AlignedCredit) -> None:
    student = torch.tensor([-1.0, -3.0, -0.5, -2.0])
    compared, is_aligned = credit(student, torch.tensor([-4.0, -0.5, -2.0]), ALIGNMENT)
    torch.testing.assert_close(compared[is_aligned], student[is_aligned])


@every_credit
def test_without_any_pair_nothing_is_comparable(credit: AlignedCredit) -> None:
    for student, teacher in ((STUDENT, TEACHER), (STUDENT, TEACHER[:0])):
        compared, is_aligned = credit(student, teacher, Alignment())
        assert not compared.any()
        assert not is_aligned.any()
    assert credit(STUDENT[:0], TEACHER[:0], Alignment())[0].shape == (0,)


@every_credit
@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2]
)
def test_credits_are_computed_in_at_least_float32(
    credit: AlignedCredit, dtype: torch.dtype, expected: torch.dtype
) -> None:
    assert credit(STUDENT.to(dtype), TEACHER.to(dtype), ALIGNMENT)[0].dtype == expected


def log_ratios(credit: AlignedCredit, student: Tensor = STUDENT) -> list[float | None]:
    compared, is_aligned = credit(student, TEACHER, ALIGNMENT)
    ratios = (compared - student).tolist()
    return [ratio if counts else None for ratio, counts in zip(ratios, is_aligned.tolist(), strict=True)]


def test_exact_match_keeps_only_tokens_of_both_sides() -> None:
    assert log_ratios(ExactMatchCredit()) == [None, None, 0.25, 1.0]


Division: TypeAlias = Literal["whole", "equal", "proportional"]


@pytest.mark.parametrize(
    ("division", "span"), [("whole", [2.0, 2.0]), ("equal", [1.0, 1.0]), ("proportional", [0.5, 1.5])]
)
def test_the_log_ratio_of_a_span_is_divided_among_its_tokens(division: Division, span: list[float]) -> None:
    assert log_ratios(SpanCredit(division)) == pytest.approx([*span, 0.25, 1.0])


def test_long_spans_are_dropped() -> None:
    assert log_ratios(SpanCredit(max_tokens=1)) == log_ratios(ExactMatchCredit())
    long = align([(i, i + 1) for i in range(7)], [(0, 7)])
    for ours, theirs, alignment in ((7, 1, long), (1, 7, Alignment([], [(t, s) for s, t in long.spans]))):
        student, teacher = -torch.rand(ours), -torch.rand(theirs)
        assert not SpanCredit()(student, teacher, alignment)[1].any()
        assert SpanCredit(max_tokens=7)(student, teacher, alignment)[1].all()
    with pytest.raises(ValueError, match="`max_tokens` of a span must be at least 1, got 0"):
        SpanCredit(max_tokens=0)


def test_a_span_that_the_student_was_sure_of_is_divided_equally() -> None:
    sure = torch.tensor([0.0, 0.0, -0.5, -2.0])
    assert log_ratios(SpanCredit("proportional"), sure)[:2] == [-1.0, -1.0]


def test_an_impossible_text_stays_impossible_and_is_no_nan() -> None:
    for credit in (ExactMatchCredit(), SpanCredit(), SpanCredit("equal"), SpanCredit("proportional"), SequenceCredit()):
        compared, is_aligned = credit(STUDENT, torch.tensor([-math.inf, -1.0, -1.0]), ALIGNMENT)
        assert not compared.isnan().any()
        assert bool((compared[:2][is_aligned[:2]] == -math.inf).all())


def test_the_sequence_credit_needs_every_token() -> None:
    assert log_ratios(SequenceCredit()) == pytest.approx([3.25] * 4)
    assert not SequenceCredit()(STUDENT, torch.cat([TEACHER, TEACHER[:1]]), ALIGNMENT)[1].any()
    assert not SequenceCredit()(torch.cat([STUDENT, STUDENT[:1]]), TEACHER, ALIGNMENT)[1].any()


def test_only_the_splice_reads_an_assembled_sequence() -> None:
    assert SpliceCredit.is_spliced
    assert not any(c.is_spliced for c in (ExactMatchCredit, SpanCredit, SequenceCredit, PrefixCredit))
    alignment = align([(0, 9), (9, 10)], [(i, i + 1) for i in range(10)])
    compared, _ = SpliceCredit()(torch.tensor([-1.0, -1.0]), torch.full((10,), -0.5), alignment)
    assert compared.tolist() == [-4.5, -0.5]


def test_the_prefix_credit_has_no_answer_from_log_probs_of_tokens() -> None:
    assert not isinstance(PrefixCredit(), AlignedCredit)
    assert not callable(PrefixCredit())
    assert PrefixCredit.adds_up
    assert not any(c.adds_up for c in (ExactMatchCredit, SpanCredit, SequenceCredit, SpliceCredit))


@given(st.lists(st.floats(-30, -1e-3), min_size=4, max_size=4), st.lists(st.floats(-30, 0), min_size=3, max_size=3))
def test_the_parts_of_a_span_add_up_to_its_log_ratio(student: list[float], teacher: list[float]) -> None:
    own, theirs = torch.tensor(student, dtype=torch.float64), torch.tensor(teacher, dtype=torch.float64)
    for division in ("equal", "proportional"):
        compared, _ = SpanCredit(division)(own, theirs, ALIGNMENT)
        torch.testing.assert_close(compared.sum(), theirs.sum())


def relative_bias(credit: AlignedCredit, world: str, seed: int) -> float:
    texts = Texts(*WORLDS[world], seed=seed)
    return float((texts.gradient(credit, Immediate()) - texts.exact_gradient()).norm() / texts.exact_gradient().norm())


@pytest.mark.parametrize("world", WORLDS)
def test_the_sequence_credit_has_the_exact_gradient(world: str) -> None:
    for seed in range(5):
        texts = Texts(*WORLDS[world], seed=seed)
        exact = texts.exact_gradient()
        assert exact.abs().max() > 0.01
        torch.testing.assert_close(texts.gradient(SequenceCredit(), Immediate()), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("credit", [ExactMatchCredit(), *EXAMPLES["SpanCredit"]], ids=str)
def test_every_other_credit_is_biased(credit: AlignedCredit, world: str) -> None:
    """On average over five random teachers; `tests/benchmarks/credit.py` prints the numbers."""
    bias = sum(relative_bias(credit, world, seed) for seed in range(5)) / 5
    assert 0.05 < bias < 3


@pytest.mark.parametrize("world", WORLDS)
def test_a_student_that_equals_the_teacher_as_text_is_left_alone_by_the_sequence_credit_only(world: str) -> None:
    texts = Texts(*WORLDS[world], seed=0)
    ends = {str(credit): texts.fixed_point(credit, Immediate()) for credit in (SequenceCredit(), ExactMatchCredit())}
    assert ends[str(SequenceCredit())] < 0.01
    assert ends[str(ExactMatchCredit())] > 0.05
