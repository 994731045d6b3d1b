from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.functional.alignment import Alignment, align

Spans = list[tuple[int, int]]


def cut(boundaries: list[int]) -> Spans:
    """Return the spans between boundaries; equal neighbours give an empty one."""
    return list(itertools.pairwise(boundaries))


@st.composite
def tokenisations(draw: st.DrawFn) -> tuple[int, Spans, Spans]:
    """A text's length in bytes and two tokenisations of it, without control tokens."""
    length = draw(st.integers(1, 30))
    inner = st.sets(st.integers(1, length)).map(lambda chosen: cut(sorted({0, length, *chosen})))
    return length, draw(inner), draw(inner)


@given(tokenisations())
def test_spans_partition_the_text_and_are_the_smallest(case: tuple[int, Spans, Spans]) -> None:
    length, student, teacher = case
    alignment = align(student, teacher)
    covered = [(student[s[0]][0], student[s[-1]][1]) for s, _ in alignment.spans]
    assert covered == [(teacher[t[0]][0], teacher[t[-1]][1]) for _, t in alignment.spans]
    common = sorted({0} | ({end for _, end in student} & {end for _, end in teacher}))
    assert covered == cut(common)
    assert common[-1] == length


@given(tokenisations())
def test_exact_match_pairs_are_all_tokens_that_cover_the_same_bytes(case: tuple[int, Spans, Spans]) -> None:
    _, student, teacher = case
    expected = [(i, teacher.index(span)) for i, span in enumerate(student) if span in teacher]
    assert align(student, teacher).strict == expected


@given(tokenisations())
def test_the_same_tokenisation_is_the_identity(case: tuple[int, Spans, Spans]) -> None:
    _, student, _ = case
    alignment = align(student, student)
    assert alignment.strict == [(i, i) for i in range(len(student))]
    assert alignment.spans == [(range(i, i + 1), range(i, i + 1)) for i in range(len(student))]


@given(tokenisations())
def test_exchanging_the_sides_exchanges_the_answer(case: tuple[int, Spans, Spans]) -> None:
    _, student, teacher = case
    there, back = align(student, teacher), align(teacher, student)
    assert back == Alignment([(t, s) for s, t in there.strict], [(t, s) for s, t in there.spans])


@given(tokenisations(), st.lists(st.integers(0, 30)), st.lists(st.integers(0, 30)))
def test_control_tokens_are_never_aligned(case: tuple[int, Spans, Spans], ours: list[int], theirs: list[int]) -> None:
    _, student, teacher = case
    sides = [
        sorted([*spans, *((place, place) for place in places)])
        for spans, places in ((student, ours), (teacher, theirs))
    ]
    alignment = align(sides[0], sides[1])
    for pair in alignment.spans:
        for side, indices in zip(sides, pair, strict=True):
            assert all(side[i][0] < side[i][1] for i in indices)
    for i, j in alignment.strict:
        assert sides[0][i] == sides[1][j]


@given(tokenisations(), st.integers(0, 30))
def test_parts_of_a_text_can_be_aligned_one_after_the_other(case: tuple[int, Spans, Spans], length: int) -> None:
    _, student, teacher = case
    first, second = align(student, teacher), align(teacher, student)
    moved = [
        [*ours, *((begin + 100, end + 100) for begin, end in theirs)]
        for ours, theirs in ((student, teacher), (teacher, student))
    ]
    whole = first.then(second, len(student), len(teacher))
    assert whole == align(moved[0], moved[1])
    kept = whole.up_to(length)
    assert kept.spans == [pair for pair in whole.spans if all(j < length for j in pair[1])]
    assert kept.strict == [(s[0], t[0]) for s, t in kept.spans if len(s) == len(t) == 1]


def test_no_run_reaches_across_a_control_token() -> None:
    assert align([(0, 1), (1, 1), (1, 2), (2, 3)], [(0, 2), (2, 3)]).spans == [(range(3, 4), range(1, 2))]


def test_bytes_of_one_side_only_are_left_out() -> None:
    assert align([(0, 2), (2, 4)], [(0, 2)]).strict == [(0, 0)]
    assert align([(0, 2), (4, 6)], [(0, 2), (2, 4), (4, 6)]).strict == [(0, 0), (1, 2)]
    assert align([(0, 3), (4, 6)], [(0, 2), (2, 4), (4, 6)]) == Alignment([(1, 2)], [(range(1, 2), range(2, 3))])


@pytest.mark.parametrize("spans", [[], [(0, 0)], [(0, 0), (0, 0)]])
def test_without_text_there_is_nothing_to_align(spans: Spans) -> None:
    assert align(spans, [(0, 1)]) == align([(0, 1)], spans) == align(spans, spans) == Alignment([], [])


class Counting(list[tuple[int, int]]):
    """Spans that count how often they are looked at."""

    num_looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.num_looks += 1
        return super().__getitem__(index)


def test_time_grows_linearly() -> None:
    for length in (600, 6_000):
        student, teacher = (Counting(cut(list(range(0, length + 1, step)))) for step in (2, 3))
        align(student, teacher)
        assert student.num_looks <= 3 * len(student)
        assert teacher.num_looks <= 3 * len(teacher)
