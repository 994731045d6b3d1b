"""The bytes of a vocabulary's tokens, sorted, so that the tokens that begin with a text are one range of indices."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache

CACHE_SIZE = 2**18
"""Most answers kept of one question."""

CACHED_TEXTS = 16
"""Most answers kept that are as long as a text."""


class TokenBytes:
    """The bytes of a vocabulary's tokens, sorted.

    An *index* below counts in sorted order: `sorted_bytes[index]` are the bytes of the token `sorted_ids[index]`.

    Args:
        token_bytes: Bytes of each token id; empty for a control token.
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        """Sort the tokens."""
        self.sorted_ids = sorted(range(len(token_bytes)), key=lambda token_id: token_bytes[token_id])
        self.sorted_bytes = [token_bytes[token_id] for token_id in self.sorted_ids]
        self.max_bytes = max(map(len, token_bytes), default=0)
        self.beginning_with = lru_cache(CACHE_SIZE)(self._beginning_with)
        self.extensions = lru_cache(CACHE_SIZE)(self._extensions)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.sorted_ids)

    def equal_to(self, text: bytes) -> range:
        """Return the indices of the tokens whose bytes are the text."""
        return range(bisect_left(self.sorted_bytes, text), bisect_right(self.sorted_bytes, text))

    def _beginning_with(self, text: bytes) -> range:
        """Return the indices of the tokens that begin with the text."""
        first = bisect_left(self.sorted_bytes, text)
        return range(first, bisect_right(self.sorted_bytes, text, first, key=lambda token: token[: len(text)]))

    def reaches(self, text: bytes) -> list[int]:
        """Return, for every place in a text, how far a single token may go along the text from there.

        Example:
            >>> TokenBytes([b"a", b"b", b"abc"]).reaches(b"abba")
            [2, 2, 3, 4]
        """
        ends = []
        for begin in range(len(text)):
            end = begin
            while end < len(text) and self.beginning_with(text[begin : end + 1]):
                end += 1
            ends.append(end)
        return ends

    def first_tokens(self, text: bytes) -> list[int]:
        """Return the ids of the tokens that may come first in a text that begins like this, longest match first.

        One token if the beginning decides it; otherwise the longest token inside it and all that go beyond it.
        """
        longest = next((indices for n in range(len(text), 0, -1) if (indices := self.equal_to(text[:n]))), range(0))
        longer = [index for index in self.beginning_with(text) if len(self.sorted_bytes[index]) > len(text)]
        return [self.sorted_ids[index] for index in (*longest[:1], *longer)]

    def _extensions(self, text: bytes) -> tuple[bytes, ...]:
        """Return the shortest tokens that begin with the text and go on, so that none begins another one."""
        found: list[bytes] = []
        for index in self.beginning_with(text):
            token = self.sorted_bytes[index]
            if len(token) > len(text) and not (found and token.startswith(found[-1])):
                found.append(token)
        return tuple(found)


def union(ranges: Sequence[range]) -> list[tuple[int, int]]:
    """Return (first, stop) of ranges that hold the same indices, of which no two overlap.

    Example:
        >>> union([range(5, 7), range(2), range(6, 9)])
        [(0, 2), (5, 9)]
    """
    merged: list[tuple[int, int]] = []
    for one in sorted((r.start, r.stop) for r in ranges if r):
        if merged and one[0] <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(one[1], merged[-1][1]))
        else:
            merged.append(one)
    return merged
