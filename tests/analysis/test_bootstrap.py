from __future__ import annotations

import numpy as np
import pytest

from lightning_opd.analysis.bootstrap import mean_interval, paired_intervals, resampled_means


def test_bootstrap_means_have_the_spread_of_the_binomial() -> None:
    values = np.array([[1.0] * 300 + [0.0] * 100])
    means = resampled_means(values, 4000, seed=0)[0]
    assert means.mean() == pytest.approx(0.75, abs=2e-3)
    assert means.std() == pytest.approx((0.75 * 0.25 / 400) ** 0.5, rel=0.05)


def test_bootstrap_interval_of_a_mean_is_the_normal_one_for_many_prompts() -> None:
    values = np.array([1.0] * 600 + [0.0] * 400)
    interval = mean_interval(values, 8000, seed=1)
    half = 1.96 * (0.6 * 0.4 / 1000) ** 0.5
    assert interval.value == pytest.approx(0.6)
    assert interval.low == pytest.approx(0.6 - half, abs=4e-3)
    assert interval.high == pytest.approx(0.6 + half, abs=4e-3)


def test_equal_answers_have_a_parity_of_one_without_spread() -> None:
    answers = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    student, teacher, parity = paired_intervals(answers, answers, 500, seed=0)
    assert (parity.value, parity.low, parity.high) == (1.0, 1.0, 1.0)
    assert student == teacher
    assert student.low is not None
    assert student.low < 0.6


def test_paired_intervals_are_those_of_all_resamples() -> None:
    """Two prompts have four resamples of equal chance: (a, a), (a, b), (b, a), (b, b)."""
    student, teacher = np.array([1.0, 0.5]), np.array([1.0, 1.0])
    means = resampled_means(np.stack([student, teacher]), 20000, seed=0)
    ratio, counts = np.unique(means[0] / means[1], return_counts=True)
    assert ratio.tolist() == [0.5, 0.75, 1.0]
    assert counts / 20000 == pytest.approx([0.25, 0.5, 0.25], abs=0.01)
    _, _, parity = paired_intervals(student, teacher, 2000, seed=0)
    assert (parity.value, parity.low, parity.high) == (0.75, 0.5, 1.0)


def test_equal_seeds_give_equal_intervals_and_other_seeds_others() -> None:
    values = np.random.default_rng(0).random(200)
    paired = values, values**2
    for intervals in (
        [mean_interval(values, 700, seed) for seed in (3, 3, 4)],
        [paired_intervals(*paired, 700, seed) for seed in (3, 3, 4)],
    ):
        assert intervals[0] == intervals[1]
        assert intervals[0] != intervals[2]


def test_every_chunk_of_resamples_is_drawn_anew() -> None:
    means = resampled_means(np.random.default_rng(0).random((1, 50)), 700, seed=3)[0]
    assert means.shape == (700,)
    assert len(set(means)) > 690


def test_a_teacher_that_solves_nothing_has_no_parity() -> None:
    _, teacher, parity = paired_intervals(np.array([1.0, 0.0]), np.zeros(2), 100, seed=0)
    assert teacher.value == 0.0
    assert (parity.value, parity.low, parity.high) == (None, None, None)
