"""How fast a run goes, and how long it will take."""

from __future__ import annotations

from collections import deque

NUM_REMEMBERED = 32
"""Rollout batches over which speed is averaged."""


class Pace:
    """Measures rollout batches and the pauses between them; the time is passed in, in seconds.

    Args:
        now: When the run began.
    """

    def __init__(self, now: float) -> None:
        """Start the clock."""
        self._started = self._last = now
        self._batches: deque[tuple[float, int]] = deque(maxlen=NUM_REMEMBERED)
        self._paused = self._paused_in_batch = 0.0
        self._num_batches = 0

    def pause(self, seconds: float) -> None:
        """Take out of the running batch what validation took; it counts towards the time left by itself."""
        self._paused += seconds
        self._paused_in_batch += seconds

    def end_batch(self, now: float, num_tokens: int) -> None:
        """Note the end of a rollout batch with so many response tokens."""
        self._batches.append((max(1e-9, now - self._last - self._paused_in_batch), num_tokens))
        self._last, self._paused_in_batch = now, 0.0
        self._num_batches += 1

    def elapsed(self, now: float) -> float:
        """Return the seconds since the run began."""
        return now - self._started

    def tokens_per_second(self) -> float | None:
        """Return the speed over the last rollout batches, or None before the first one is over."""
        if not self._batches:
            return None
        return sum(tokens for _, tokens in self._batches) / sum(seconds for seconds, _ in self._batches)

    def seconds_left(self, num_batches: float, now: float) -> float | None:
        """Return how long so many rollout batches will take, validation included, or None before the first is over.

        What the running batch has taken already is subtracted.
        """
        if not self._batches:
            return None
        mean = sum(seconds for seconds, _ in self._batches) / len(self._batches)
        spent = min(mean, max(0.0, now - self._last - self._paused_in_batch)) if num_batches else 0.0
        return mean * num_batches - spent + self._paused / self._num_batches * num_batches


def clock(seconds: float | None) -> str:
    """Return a duration as hours, minutes and seconds; what is over already is none.

    Example:
        >>> clock(3725.2), clock(90000), clock(-2.0), clock(None)
        ('1:02:05', '25:00:00', '0:00:00', '-:--:--')
    """
    if seconds is None:
        return "-:--:--"
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
