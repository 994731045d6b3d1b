"""The tokens of all beginnings of a text, each from the last words alone: before them they are the whole text's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate

from lightning_opd.teachers.cross_tokenizer.spelling import ByteSpelling

MIN_BACK = 16
"""Fewest bytes at the end of a beginning that are tokenised anew."""

CACHED_BORDERS = 2**16
"""Most pairs of characters of which it is remembered whether a word ends between them."""


class Beginnings:
    """Tokenises all beginnings of texts in time linear in their length.

    Tokens do not reach over the end of a word, so that a beginning has the tokens of the whole text up to the last
    word but one. A word ends where letters or digits do, if the tokenizer's own rules split there, or if none of its
    tokens has these two characters one after the other. Text without such borders (one run of letters or digits) is
    tokenised from its start, in time quadratic in the run's length.

    Args:
        spelling: The tokenizer.
    """

    def __init__(self, spelling: ByteSpelling) -> None:
        """Remember the tokenizer."""
        self._spelling = spelling
        self._is_border = lru_cache(CACHED_BORDERS)(spelling.splits)

    def __call__(self, text: bytes, whole: Sequence[int]) -> Iterator[tuple[int, list[list[int]], list[int]]]:
        """Yield the tokens of the beginnings of 1, 2, … bytes.

        Args:
            text: The text.
            whole: Its tokens, which spell it.

        Yields:
            Bytes before the last words; tokens of the words that now precede these and did not before; tokens of the
            last words, which may spell something else.
        """
        words = self._words(text, whole)
        first, settled = 0, 0
        for length in range(1, len(text) + 1):
            passed = []
            while (
                settled + 2 < len(words)
                and words[settled + 2][0] <= length
                and words[settled + 1][0] + MIN_BACK <= length
            ):
                passed.append(words[settled][1])
                settled += 1
                first = words[settled][0]
            yield first, passed, self._spelling.encode(text[first:length])

    def _words(self, text: bytes, whole: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Return begin and tokens of parts of a text that have the same tokens alone and in the whole text."""
        ends = [0, *accumulate(len(self._spelling.token_bytes(token_id)) for token_id in whole)]
        index_of = {end: index for index, end in enumerate(ends)}  # of the first token after it
        words, start = [], 0
        for end in [*self._borders(text, index_of), len(text)]:
            of_part = list(whole[index_of[start] : index_of[end]])
            if end == len(text) or self._spelling.encode(text[start:end]) == of_part:
                words.append((start, of_part))
                start = end
        return words

    def _borders(self, text: bytes, index_of: dict[int, int]) -> Iterator[int]:
        """Yield where words end in a text, if its tokens do, too."""
        position, last = 0, ""
        for character in text.decode(errors="surrogateescape"):
            is_end = last.isalnum() and not character.isalnum() and position in index_of
            if is_end and self._is_border(last, character):
                yield position
            last = character
            position += len(character.encode(errors="surrogateescape"))
