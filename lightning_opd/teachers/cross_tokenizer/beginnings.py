"""The tokens of all beginnings of a text, each from the last words alone: before them they are the whole text's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate

from lightning_opd.teachers.cross_tokenizer.spelling import ByteSpelling

MIN_BACK = 16
"""Fewest bytes at the end of a beginning that are tokenised anew."""

MIN_RUN = 64
"""Fewest bytes after which a run without the end of a word is cut where a token ends."""

CACHED_BORDERS = 2**16
"""Most pairs of characters of which it is remembered whether a word ends between them."""


class Beginnings:
    """Tokenises all beginnings of texts in time linear in their length.

    Tokens do not reach over the end of a word, so that a beginning has the tokens of the whole text up to the last
    word but one. A word ends where letters or digits do, if the tokenizer's own rules split there, or if none of its
    tokens has these two characters one after the other.

    A long run without such an end (Chinese, digits, base64) is cut at the ends of the whole text's tokens, too, where
    the tokenizer merges pairs and the parts alone have the tokens that they have in the whole. Byte-pair encoding
    leaves tokens as they are, one after the other, exactly if it does so with each two neighbours of them. The tokens
    before a cut, and those of the rest alone, are therefore those of both, if the rest begins with the tokens that
    follow the cut in the whole text. Where it does not, it is taken from further back.

    Args:
        spelling: The tokenizer.
    """

    def __init__(self, spelling: ByteSpelling) -> None:
        """Remember the tokenizer."""
        self._spelling = spelling
        self._is_border = lru_cache(CACHED_BORDERS)(spelling.splits)

    def __call__(
        self, text: bytes, whole: Sequence[int]
    ) -> Iterator[tuple[int, list[tuple[int, list[int]]], list[int]]]:
        """Yield the tokens of the beginnings of 1, 2, … bytes.

        Args:
            text: The text.
            whole: Its tokens, which spell it.

        Yields:
            Bytes before the last words; tokens of the words that have been passed since the last answer, each with the
            bytes up to its end; tokens of the last words, which may spell something else.
        """
        words = self._words(text, whole)
        settled = 0
        for length in range(1, len(text) + 1):
            passed = []
            while (
                settled + 2 < len(words)
                and words[settled + 2][0] <= length
                and words[settled + 1][0] + MIN_BACK <= length
            ):
                passed.append((words[settled + 1][0], words[settled][1]))
                settled += 1
            start, token_ids = self._last(text[:length], words, settled)
            yield start, passed, token_ids

    def _last(self, text: bytes, words: Sequence[tuple[int, list[int]]], index: int) -> tuple[int, list[int]]:
        """Return where the last words of a text begin, at this one or before it, and their tokens."""
        back = 1
        while True:
            start, of_word = words[index] if words else (0, [])
            token_ids = self._spelling.encode(text[start:])
            if not index or token_ids[: len(of_word)] == of_word:
                return start, token_ids
            index, back = max(0, index - back), 2 * back

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
            elif words:  # it may be the cut before that does not hold
                before, of_both = words[-1][0], [*words[-1][1], *of_part]
                if self._spelling.encode(text[before:end]) == of_both:
                    words[-1] = before, of_both
                    start = end
        return words

    def _borders(self, text: bytes, index_of: dict[int, int]) -> Iterator[int]:
        """Yield where words end in a text, and where long runs may be cut, if its tokens end there, too."""
        position, last, end = 0, "", 0
        for character in text.decode(errors="surrogateescape"):
            is_end = last.isalnum() and not character.isalnum() and position in index_of
            is_long = self._spelling.merges_pairs and position - end >= MIN_RUN and position in index_of
            if (is_end and self._is_border(last, character)) or is_long:
                yield position
                end = position
            last = character
            position += len(character.encode(errors="surrogateescape"))
