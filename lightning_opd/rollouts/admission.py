"""Which responses are generated together, and when waiting ones take the place of finished ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lightning_opd.errors import ConfigError

REFILL_FRACTION = 0.125
"""Waiting responses join once this fraction of the batch is free: reading prompts interrupts all others."""


@dataclass(frozen=True)
class Siblings:
    """Responses to one prompt that share its reading.

    Args:
        prompt: Index of the prompt.
        rows: Indices of the responses.
    """

    prompt: int
    rows: range


class Queue:
    """Responses that wait, those to the longest prompts first, so that whatever joins is shorter than what runs.

    Args:
        lengths: Tokens of every prompt.
        num_samples: Responses per prompt.
        max_new_tokens: Longest response in tokens.
        batch_size: Most responses at once.
        max_cache_tokens: Most tokens with keys and values at once: rows × columns, at full length.
        pads: Whether prompts of different lengths may be generated together.

    Raises:
        ConfigError: A single response may exceed the tokens.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        num_samples: int,
        max_new_tokens: int,
        batch_size: int,
        max_cache_tokens: int,
        *,
        pads: bool,
    ) -> None:
        """Sort the prompts."""
        self._lengths, self._max_new_tokens = lengths, max_new_tokens
        self._batch_size, self._max_cache_tokens, self._pads = batch_size, max_cache_tokens, pads
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        self._waiting = deque(Siblings(i, range(i * num_samples, (i + 1) * num_samples)) for i in order)
        if order and lengths[order[0]] + max_new_tokens > max_cache_tokens:
            msg = (
                f"`max_cache_tokens` of the rollout engine must hold one response at least: a prompt of "
                f"{lengths[order[0]]:,} tokens and `max_new_tokens` {max_new_tokens:,} are "
                f"{lengths[order[0]] + max_new_tokens:,}, got {max_cache_tokens:,}. Raise it to that or more, "
                "lower `max_new_tokens`, or leave out such long prompts."
            )
            raise ConfigError(msg)

    def __bool__(self) -> bool:
        """Whether any response waits."""
        return bool(self._waiting)

    def take(self, num_active: int = 0, columns: int = 0) -> list[Siblings]:
        """Return the responses that begin now, those to the longest prompts first; possibly none.

        All siblings begin together unless they do not fit into an empty batch.

        Args:
            num_active: Responses in the batch.
            columns: Columns of the batch that are in use: tokens of its longest row and what stands before them.
        """
        if not self._waiting:
            return []
        longest = self._lengths[self._waiting[0].prompt]
        capacity = min(self._batch_size, self._max_cache_tokens // (max(columns, longest) + self._max_new_tokens))
        num_free = capacity - num_active
        if num_active and num_free < min(REFILL_FRACTION * capacity, sum(len(x.rows) for x in self._waiting)):
            return []
        return list(self._taken(num_free, longest, is_empty=num_active == 0))

    def _taken(self, num_free: int, longest: int, *, is_empty: bool) -> Iterator[Siblings]:
        while self._waiting and num_free > 0:
            first = self._waiting[0]
            if not self._pads and self._lengths[first.prompt] != longest:
                return
            if len(first.rows) > num_free and not is_empty:
                return
            self._waiting.popleft()
            now, later = first.rows[:num_free], first.rows[num_free:]
            if later:
                self._waiting.appendleft(Siblings(first.prompt, later))
            yield Siblings(first.prompt, now)
            num_free, is_empty = num_free - len(now), False


def by_tokens(siblings: Sequence[Siblings], lengths: Sequence[int], max_tokens: int) -> Iterator[Sequence[Siblings]]:
    """Yield neighbours whose prompts, padded to the longest, are read at once; at least one each time.

    Args:
        siblings: Those to the longest prompts first.
        lengths: Tokens of every prompt.
        max_tokens: Most tokens read at once.
    """
    start = 0
    while start < len(siblings):
        size = max(1, max_tokens // lengths[siblings[start].prompt])
        yield siblings[start : start + size]
        start += size
