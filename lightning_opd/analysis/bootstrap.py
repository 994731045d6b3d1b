"""Bootstrap intervals of means and of a ratio of paired means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_CHUNK = 256


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval.

    Args:
        value: The estimate; None where it does not exist (a ratio to zero).
        low: 2.5 % quantile of the bootstrap distribution.
        high: 97.5 % quantile.
    """

    value: float | None
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        """Return the three numbers by name."""
        return {"value": self.value, "low": self.low, "high": self.high}


def resampled_means(values: npt.NDArray[np.float64], num_resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """Return the means of bootstrap resamples; the same prompts are drawn for every row.

    Args:
        values: `[models, prompts]`, paired by prompt.
        num_resamples: How many resamples to draw.
        seed: Seed of the draws.

    Returns:
        `[models, num_resamples]`.
    """
    generator = np.random.default_rng(seed)
    num_prompts = values.shape[1]
    chances = np.full(num_prompts, 1 / num_prompts)
    means = [
        values @ generator.multinomial(num_prompts, chances, size=min(_CHUNK, num_resamples - start)).T / num_prompts
        for start in range(0, num_resamples, _CHUNK)
    ]
    return np.concatenate(means, axis=1)


def mean_interval(values: npt.NDArray[np.float64], num_resamples: int, seed: int) -> Interval:
    """Return the mean of `values` (one per prompt) with its interval."""
    return _interval(float(values.mean()), resampled_means(values[None], num_resamples, seed)[0])


def paired_intervals(
    student: npt.NDArray[np.float64], teacher: npt.NDArray[np.float64], num_resamples: int, seed: int
) -> tuple[Interval, Interval, Interval]:
    """Return the intervals of the student's mean, the teacher's mean, and their ratio.

    Args:
        student: Outcome per prompt.
        teacher: Outcome of the same prompts in the same order.
        num_resamples: How many resamples to draw.
        seed: Seed of the draws; one resample picks the same prompts for both.
    """
    means = resampled_means(np.stack([student, teacher]), num_resamples, seed)
    defined = means[1] > 0
    ratio = float(student.mean() / teacher.mean()) if teacher.mean() > 0 else None
    return (
        _interval(float(student.mean()), means[0]),
        _interval(float(teacher.mean()), means[1]),
        _interval(ratio, means[0][defined] / means[1][defined]),
    )


def _interval(value: float | None, draws: npt.NDArray[np.float64]) -> Interval:
    if value is None or draws.size == 0:
        return Interval(value, None, None)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value, float(low), float(high))
