"""Where a reply ends because of what it says, not because of a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_TOKENS_BEFORE = 4
"""Tokens decoded before the longest string could begin: one that begins inside a token reads the rest of it."""


class StopStrings:
    """Finds the strings that end a reply in its decoded tokens.

    Args:
        strings: Each ends a reply.
        tokenizer: Decodes the reply; needed as soon as there is a string.
    """

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Check that there is a tokenizer to decode with."""
        if strings and tokenizer is None:
            msg = "`stop_strings` need a tokenizer to read replies; call `engine.use_tokenizer(tokenizer)` first."
            raise RuntimeError(msg)
        self._strings, self._tokenizer = strings, tokenizer
        # every token but the empty ones stands for a byte at least
        self._num_tokens = max((len(string.encode()) for string in strings), default=0) + NUM_TOKENS_BEFORE

    def __bool__(self) -> bool:
        """Whether there is any string."""
        return bool(self._strings)

    def has_ended(self, token_ids: list[int]) -> bool:
        """Return whether the reply has one of the strings; it had none one token before.

        Args:
            token_ids: Of the reply so far, or as many of its last ones as `tail` keeps.
        """
        if self._tokenizer is None:
            return False
        text = str(self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return any(string in text for string in self._strings)

    def tail(self, num_tokens: int) -> slice:
        """Return which of a reply's first `num_tokens` tokens `has_ended` needs."""
        return slice(max(0, num_tokens - self._num_tokens), num_tokens)
