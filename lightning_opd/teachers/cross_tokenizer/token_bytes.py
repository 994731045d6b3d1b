"""The bytes of a vocabulary's tokens, and which tokens begin like a text."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache

CACHE_SIZE = 2**18


class TokenBytes:
    """The bytes of a vocabulary's tokens, sorted.

    Args:
        pieces: Bytes of each token id; empty for a control token.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        """Sort the tokens."""
        self.order = sorted(range(len(pieces)), key=lambda token_id: pieces[token_id])
        self.pieces = [pieces[token_id] for token_id in self.order]
        self.longest = max(map(len, pieces), default=0)
        self.beginning_with = lru_cache(CACHE_SIZE)(self._beginning_with)
        self.longer_than = lru_cache(CACHE_SIZE)(self._longer_than)

    def spelling(self, text: bytes) -> range:
        """Return the places, in sorted order, of the tokens that spell a text."""
        return range(bisect_left(self.pieces, text), bisect_right(self.pieces, text))

    def _beginning_with(self, text: bytes) -> range:
        """Return the places of the tokens that begin with a text."""
        first = bisect_left(self.pieces, text)
        return range(first, bisect_right(self.pieces, text, first, key=lambda piece: piece[: len(text)]))

    def first_tokens(self, text: bytes) -> list[int]:
        """Return the tokens that may stand first in a text that begins like this, cut into the longest pieces.

        One where the beginning settles it; the longest piece in it and all that go on where it does not.
        """
        longest = next((places for n in range(len(text), 0, -1) if (places := self.spelling(text[:n]))), range(0))
        longer = [place for place in self.beginning_with(text) if len(self.pieces[place]) > len(text)]
        return [self.order[place] for place in (*longest[:1], *longer)]

    def _longer_than(self, text: bytes) -> tuple[bytes, ...]:
        """Return the shortest pieces that begin with a text and go on, so that none begins another one."""
        found: list[bytes] = []
        for place in self.beginning_with(text):
            piece = self.pieces[place]
            if len(piece) > len(text) and not (found and piece.startswith(found[-1])):
                found.append(piece)
        return tuple(found)


def union(ranges: Sequence[range]) -> list[tuple[int, int]]:
    """Return ranges of the same places of which no two overlap."""
    merged: list[tuple[int, int]] = []
    for one in sorted((r.start, r.stop) for r in ranges if r):
        if merged and one[0] <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(one[1], merged[-1][1]))
        else:
            merged.append(one)
    return merged
